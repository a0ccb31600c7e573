//! The scripts. Each is one operation on one queue: the prelude, whether the queue has to be declared, and the operation.

use super::errors::Call;
use std::{fmt::Write, sync::LazyLock};

/// A script and the name under which a server knows it.
#[derive(Debug)]
pub(super) struct Script {
    /// What it does, for messages.
    pub(super) name: &'static str,
    /// Whether it changes something that a caller asked for: then a lost answer, or an error on the way, leaves open whether
    /// it was done.
    pub(super) call: Call,
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
    ($($constant:ident = $name:literal, $call:ident: $($part:literal)+;)+) => {
        $(pub(super) static $constant: Script = Script {
            name: $name,
            call: Call::$call,
            text: concat!(include_str!("lua/prelude.lua"), $(include_str!($part)),+),
            hash: LazyLock::new(|| hash($constant.text)),
        };)+

        /// All of them.
        pub(super) static ALL: &[&Script] = &[$(&$constant),+];
    };
}

scripts! {
    ENQUEUE = "enqueue", Changes: "lua/need.lua" "lua/enqueue.lua";
    CLAIM = "claim", Repeats: "lua/need.lua" "lua/claim.lua";
    EXTEND = "extend", Changes: "lua/need.lua" "lua/extend.lua";
    SETTLE = "settle", Changes: "lua/need.lua" "lua/settle.lua";
    UNCLAIM = "unclaim", Repeats: "lua/need.lua" "lua/unclaim.lua";
    PASS = "pass on a wake-up", Repeats: "lua/need.lua" "lua/pass.lua";
    STATS = "stats", Reads: "lua/need.lua" "lua/stats.lua";
    INSPECT = "inspect", Reads: "lua/need.lua" "lua/records.lua" "lua/inspect.lua";
    LIST = "list", Reads: "lua/need.lua" "lua/records.lua" "lua/list.lua";
    RESULTS = "results", Reads: "lua/need.lua" "lua/results.lua";
    CANCEL = "cancel", Changes: "lua/need.lua" "lua/cancel.lua";
    REDRIVE = "redrive", Changes: "lua/need.lua" "lua/redrive.lua";
    PURGE = "purge", Changes: "lua/need.lua" "lua/purge.lua";
    UNPIN = "unpin", Repeats: "lua/unpin.lua";
    PEEK = "completions", Prepares: "lua/peek.lua";
    READ = "completions", Repeats: "lua/read.lua";
    PRUNE = "completions", Repeats: "lua/prune.lua";
    ACKNOWLEDGE = "acknowledge", Repeats: "lua/acknowledge.lua";
    DECLARE = "declare", Repeats: "lua/declare.lua";
    DELETE = "delete_queue", Repeats: "lua/delete.lua";
}
