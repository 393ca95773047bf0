//! The table `attempts`.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "attempts")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub tenant_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub delivery_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub number: i32,
    pub trigger_code: i16,
    pub start_time: i64,
    pub duration_us: i64,
    pub http_status: Option<i32>,
    pub request_headers: String,
    pub response_headers: String,
    pub response_body: Vec<u8>,
    pub failure: Option<String>,
    pub outcome: i16,
    pub trace: String,
    pub timings: Option<String>,
    pub smtp_reply: String,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
