use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

/// What a peer may do in a location. There is no right to delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// See what is there.
    List,
    /// Fetch files.
    Read,
    /// Put files under names that are free.
    Create,
    /// Replace files.
    Overwrite,
}

impl Right {
    /// The word in the settings.
    pub fn word(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Read => "read",
            Self::Create => "create",
            Self::Overwrite => "overwrite",
        }
    }
}

/// The rights in one location, peer by peer. A certificate of the authority alone grants nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights(BTreeMap<String, BTreeSet<Right>>);

impl Rights {
    /// Of these grants; several for one peer add up.
    pub fn new(grants: impl IntoIterator<Item = (String, Vec<Right>)>) -> Self {
        let mut rights = Self::default();
        for (peer, may) in grants {
            rights.0.entry(peer).or_default().extend(may);
        }
        rights
    }

    /// Whether `peer` may do this.
    pub fn allowed(&self, peer: &str, right: Right) -> bool {
        self.0.get(peer).is_some_and(|granted| granted.contains(&right))
    }

    /// Whether `peer` may do anything at all.
    pub fn known(&self, peer: &str) -> bool {
        self.0.get(peer).is_some_and(|granted| !granted.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Right; 4] = [Right::List, Right::Read, Right::Create, Right::Overwrite];

    /// Every set of rights that may be granted, against every right that may be asked for: what was granted and nothing else, to
    /// whom it was granted and nobody else. Seen to fail with overwrite made to imply create, and with an empty grant taken for all.
    #[test]
    fn exactly_what_was_granted_is_allowed() {
        for granted in 0..16_u8 {
            let may: Vec<Right> =
                (0..).zip(ALL).filter(|(place, _)| granted >> place & 1 == 1).map(|(_, right)| right).collect();
            let rights = Rights::new([("cologne".to_owned(), may.clone())]);
            for right in ALL {
                assert_eq!(rights.allowed("cologne", right), may.contains(&right), "{may:?} {right:?}");
                for stranger in ["chile", "", "Cologne", "cologne ", "*"] {
                    assert!(!rights.allowed(stranger, right), "{stranger:?}");
                }
            }
            assert_eq!(rights.known("cologne"), !may.is_empty());
            assert!(!rights.known("chile"));
        }
    }

    #[test]
    fn grants_add_up_and_none_means_none() {
        let grants = [("p", vec![Right::List]), ("q", vec![Right::Read]), ("p", vec![Right::Create])];
        let rights = Rights::new(grants.map(|(peer, may)| (peer.to_owned(), may)));
        assert_eq!(ALL.map(|right| rights.allowed("p", right)), [true, false, true, false]);
        assert_eq!(ALL.map(|right| rights.allowed("q", right)), [false, true, false, false]);
        assert!(ALL.iter().all(|right| !Rights::default().allowed("p", *right)));
    }
}
