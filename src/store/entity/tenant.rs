//! The table `tenants`.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "tenants")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub display_name: String,
    pub environment: String,
    pub account_id: Option<i64>,
    pub primary_contact: String,
    pub webhook_url: String,
    pub labels: String,
    pub retry_policy: Option<String>,
    pub revision: i64,
    pub create_time: i64,
    pub update_time: i64,
    pub delete_time: Option<i64>,
    pub sealed: Option<Vec<u8>>,
    pub locale: String,
    pub time_zone: String,
    pub primary_contact_off: String,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
