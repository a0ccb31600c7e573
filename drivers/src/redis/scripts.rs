//! The scripts. Each is one operation on one queue: the prelude, whether the queue has to be declared, and the operation.

use std::{fmt::Write, sync::LazyLock};

/// A script and the name under which a server knows it.
#[derive(Debug)]
pub(super) struct Script {
    /// What it does, for messages.
    pub(super) name: &'static str,
    /// Whether it changes something that a caller asked for: then a lost answer leaves open whether it was done.
    pub(super) changes: bool,
    pub(super) text: &'static str,
    hash: LazyLock<String>,
}

impl Script {
    /// The SHA-1 of the text, in hexadecimal digits.
    pub(super) fn hash(&self) -> &str {
        &self.hash
    }
}

fn hash(text: &str) -> String {
    let script = redis::Script::new(text);
    let mut hash = String::with_capacity(40);
    // Writing to a string does not fail.
    let _ = write!(hash, "{}", script.get_hash());
    hash
}

macro_rules! scripts {
    ($($constant:ident = $name:literal, $changes:literal: $($part:literal)+;)+) => {
        $(pub(super) static $constant: Script = Script {
            name: $name,
            changes: $changes,
            text: concat!(include_str!("lua/prelude.lua"), $(include_str!($part)),+),
            hash: LazyLock::new(|| hash($constant.text)),
        };)+

        #[cfg(test)]
        pub(super) const ALL: &[&Script] = &[$(&$constant),+];
    };
}

scripts! {
    ENQUEUE = "enqueue", true: "lua/need.lua" "lua/enqueue.lua";
    CLAIM = "claim", true: "lua/need.lua" "lua/claim.lua";
    EXTEND = "extend", true: "lua/need.lua" "lua/extend.lua";
    SETTLE = "settle", true: "lua/need.lua" "lua/settle.lua";
    UNCLAIM = "unclaim", true: "lua/need.lua" "lua/unclaim.lua";
    PASS = "pass on a wake-up", true: "lua/need.lua" "lua/pass.lua";
    STATS = "stats", false: "lua/need.lua" "lua/stats.lua";
    INSPECT = "inspect", false: "lua/need.lua" "lua/records.lua" "lua/inspect.lua";
    LIST = "list", false: "lua/need.lua" "lua/records.lua" "lua/list.lua";
    RESULTS = "results", false: "lua/need.lua" "lua/results.lua";
    CANCEL = "cancel", true: "lua/need.lua" "lua/cancel.lua";
    REDRIVE = "redrive", true: "lua/need.lua" "lua/redrive.lua";
    PURGE = "purge", true: "lua/need.lua" "lua/purge.lua";
    UNPIN = "unpin", true: "lua/unpin.lua";
    PEEK = "completions", false: "lua/peek.lua";
    READ = "completions", true: "lua/read.lua";
    ACKNOWLEDGE = "acknowledge", true: "lua/acknowledge.lua";
    DECLARE = "declare", true: "lua/declare.lua";
    DELETE = "delete_queue", true: "lua/delete.lua";
}
