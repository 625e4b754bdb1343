//! All tables of the index. Each name carries a version: another encoding is another table.

use redb::TableDefinition;

/// Task digest -> [`super::Row`].
pub(super) const TASKS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("tasks-1");
