//! What a view is to show, and what of it is not done yet. Plain values.

use std::collections::BTreeSet;
use std::time::SystemTime;

use crate::values::{StorePath, View};

/// A closure that the store thread holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::monitor) struct Found {
    /// Later resolutions have greater numbers.
    pub(in crate::monitor) number: u64,
    /// The members.
    pub(in crate::monitor) view: View,
    /// The roots whose closure that is.
    pub(in crate::monitor) roots: BTreeSet<StorePath>,
}

/// What the next server is told to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::monitor) struct Content {
    /// The members.
    pub(in crate::monitor) view: View,
    /// The roots whose closures that is.
    pub(in crate::monitor) roots: BTreeSet<StorePath>,
    /// Number of the switch that made it so.
    pub(in crate::monitor) epoch: u32,
    /// Names that the kernel may have cached otherwise than they are.
    pub(in crate::monitor) unsettled: BTreeSet<StorePath>,
    /// Since when.
    pub(in crate::monitor) since: SystemTime,
}

/// What a resolution changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::monitor) struct Change {
    /// Names that were added.
    pub(in crate::monitor) added: usize,
    /// Names that were removed.
    pub(in crate::monitor) removed: usize,
    /// Whether the roots are others.
    pub(in crate::monitor) roots: bool,
}

impl Change {
    /// Whether the names are the same.
    pub(in crate::monitor) fn is_none(self) -> bool {
        self.added == 0 && self.removed == 0
    }
}

impl Content {
    /// The content of a new mount.
    pub(in crate::monitor) fn new(found: &Found, since: SystemTime) -> Self {
        let (view, roots) = (found.view.clone(), found.roots.clone());
        Self { view, roots, epoch: 1, unsettled: BTreeSet::new(), since }
    }

    /// Shows `found` from now on: alone, or besides what was shown before.
    pub(in crate::monitor) fn show(&mut self, found: &Found, prune: bool) -> Change {
        let view = if prune { found.view.clone() } else { self.view.union(&found.view) };
        let roots = if prune { found.roots.clone() } else { &self.roots | &found.roots };
        let added: Vec<StorePath> = view.difference(&self.view).cloned().collect();
        let removed: Vec<StorePath> = self.view.difference(&view).cloned().collect();
        let change = Change { added: added.len(), removed: removed.len(), roots: roots != self.roots };
        self.unsettled.extend(added.into_iter().chain(removed));
        self.roots = roots;
        self.view = view;
        change
    }

    /// Gives what is to be shown a number of its own: a server that reports it has invalidated all names that are
    /// unsettled now, and examined its members.
    pub(in crate::monitor) fn number(&mut self, now: SystemTime) {
        self.epoch = self.epoch.wrapping_add(1);
        self.since = now;
    }

    /// `serving 3 store paths since …`.
    pub(in crate::monitor) fn status(&self) -> String {
        let since = humantime::format_rfc3339_seconds(self.since);
        match self.view.len() {
            1 => format!("serving 1 store path since {since}"),
            paths => format!("serving {paths} store paths since {since}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::{found, names};
    use super::*;

    #[test]
    fn a_view_grows_or_is_replaced_and_what_changes_is_unsettled() {
        let now = SystemTime::UNIX_EPOCH;
        for (prune, which, added, removed) in [(false, 0b111, 1, 0), (true, 0b110, 1, 1)] {
            let mut content = Content::new(&found(1, 0b011), now);
            let change = content.show(&found(2, 0b110), prune);
            assert_eq!(change, Change { added, removed, roots: true });
            assert_eq!(content.view, names(which));
            assert_eq!(content.roots, names(which).names().cloned().collect());
            let unsettled = if prune { 0b101 } else { 0b100 };
            assert_eq!(content.unsettled, names(unsettled).names().cloned().collect());
            assert_eq!(content.epoch, 1, "the caller gives it a number");
            content.number(now);
            assert_eq!(content.epoch, 2);
            let again = content.show(&found(3, 0b110), prune);
            assert_eq!((again.is_none(), again.roots), (true, false));
        }
        let one = Content::new(&found(1, 1), now);
        assert_eq!(one.status(), "serving 1 store path since 1970-01-01T00:00:00Z");
        assert_eq!(
            Content::new(&found(1, 3), now).status(),
            "serving 2 store paths since 1970-01-01T00:00:00Z"
        );
    }
}
