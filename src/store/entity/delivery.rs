//! The table `deliveries`.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "deliveries")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub tenant_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub event_id: String,
    pub event_type: String,
    pub subscription_id: String,
    pub channel: i16,
    pub recipient: String,
    pub state: i16,
    pub failure_reason: Option<i16>,
    pub attempt_count: i32,
    pub automatic_count: i32,
    pub next_attempt_time: Option<i64>,
    pub expire_time: Option<i64>,
    pub leased_by: Option<String>,
    pub due_time: Option<i64>,
    pub recover_time: Option<i64>,
    pub interrupted_count: i32,
    pub last_attempt: Option<String>,
    pub trace_id: String,
    pub untold: i16,
    pub revision: i64,
    pub create_time: i64,
    pub update_time: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
