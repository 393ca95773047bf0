//! The tables as sea-orm sees them. Private to the store.

pub(in crate::store) mod api_key;
pub(in crate::store) mod attempt;
pub(in crate::store) mod delivery;
pub(in crate::store) mod event;
pub(in crate::store) mod event_type;
pub(in crate::store) mod subscription;
pub(in crate::store) mod tenant;
