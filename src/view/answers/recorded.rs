//! What of the answers a successor has to know: records in the journal, of nodes, of how they are read, and of members.
//!
//! Invariant: the kernel is told of a node after its record was appended, and registrations of nodes that nothing uses end.

use super::ServedView;
use crate::view::journal::Record;
use crate::view::trie::{Kept, NodeId, NodeRecord};

impl ServedView {
    /// Makes nodes durable before the kernel is told of them.
    pub fn record(&self, records: &[Record]) {
        if records.iter().any(|record| matches!(record, Record::Node(_))) {
            self.usage.set_nodes(self.trie.len());
        }
        let Some(journal) = self.journal.as_ref().filter(|_| !records.is_empty()) else { return };
        if let Err(error) = journal.append(records) {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "cannot write the node journal: the view continues, but will not survive a crash of its server; free space in the state directory and mount the view again"
            );
        }
        for record in records {
            if let Record::Node(node) = record {
                self.ledger.iter().for_each(|ledger| ledger.names(node.id.0));
                self.trie.recorded(node.id);
            }
        }
        if journal.claim_rewrite(self.trie.len()) {
            self.rewrite_journal();
        }
    }

    /// Replaces the journal by one with what is known now.
    pub(in crate::view) fn rewrite_journal(&self) {
        let Some(journal) = &self.journal else { return };
        let live = |put: &mut dyn FnMut(&Record)| {
            self.trie.for_each(|kept| match kept {
                Kept::Node { id, parent, name } => {
                    put(&Record::Node(NodeRecord { id, parent, name: name.into() }));
                }
                Kept::Replaced(member) => put(&Record::Replaced(member)),
            });
            // After the nodes: whatever was handed out before is not given again, known or not.
            put(&Record::Next(self.trie.next()));
            self.on_disk.for_each_cached(|id, identity| put(&Record::Member(id, identity)));
            if let Some(registrations) = &self.registrations {
                registrations.for_each(|record| put(&record));
            }
        };
        if let Err(error) = journal.rewrite(live) {
            tracing::warn!(error = &error as &dyn std::error::Error, "the node journal keeps growing");
        }
    }

    /// What this server has to do when a member was replaced: nothing of the old one is used again, and names in it get
    /// other nodes. Returns the member and the nodes that they had, of which the kernel has to drop what it has cached.
    pub fn forget_replaced(&self, member: NodeId) -> Vec<NodeRecord> {
        let mut nodes: Vec<_> = self.trie.record(member).into_iter().collect();
        nodes.extend(self.trie.detach(member));
        self.record(&[Record::Replaced(member)]);
        if let Some(all) = &self.registrations {
            let ended: Vec<_> = nodes.iter().filter_map(|node| all.end_replaced(node.id)).collect();
            self.record(&ended.iter().map(|(node, way)| way.record_end(*node)).collect::<Vec<_>>());
        }
        self.backing.close_all();
        nodes
    }

    /// Ends the registrations of `nodes` that nothing uses.
    pub(super) fn end_idle(&self, nodes: &[NodeId]) {
        let Some(all) = &self.registrations else { return };
        let ended: Vec<_> = nodes.iter().filter_map(|node| all.end_idle(*node)).collect();
        self.record(&ended.iter().map(|(node, way)| way.record_end(*node)).collect::<Vec<_>>());
    }
}
