//! What jobs answered and why they failed, within bounds that hold for the serialised form.

use crate::Failure;

/// Bytes of one result in the state.
const MAX_INLINE: usize = 1024;
/// Bytes of all results in the state, as they stand in its JSON.
pub(crate) const MAX_INLINE_TOTAL: usize = 16 * 1024;
/// What a result takes beside its own text: its member's number and punctuation.
const ENTRY: usize = 11;
/// Failures of a step that are kept with their message.
pub(crate) const MAX_FAILURES: usize = 10;
/// Bytes of a kept message, as it stands in JSON.
pub(crate) const MAX_MESSAGE: usize = 256;
/// Bytes of a kept reason.
const MAX_REASON: usize = 64;
/// Places whose contradiction is remembered; more of them tell nothing new.
pub(crate) const MAX_CONFLICTS: usize = 64;

/// Bytes that a result would take in the state, when there is room for it.
pub(crate) fn room_for(text: &str, taken: u32) -> Option<u32> {
    // Short texts with many quotes grow in JSON, and many tiny ones have numbers that are longer than themselves.
    let cost = width_of(text) + ENTRY;
    let fits = text.len() <= MAX_INLINE && taken as usize + cost <= MAX_INLINE_TOTAL;
    fits.then(|| u32::try_from(cost).ok()).flatten()
}

/// A failure that takes as much room as any can.
pub(crate) fn longest_failure() -> Failure {
    Failure { reason: "x".repeat(MAX_REASON), message: "x".repeat(MAX_MESSAGE) }
}

/// Bytes of a text in JSON, without its quotes.
pub(crate) fn width_of(text: &str) -> usize {
    text.chars().map(width).sum()
}

/// A failure cut to its limits.
pub(crate) fn bounded(failure: &Failure) -> Failure {
    Failure { reason: cut_to(&failure.reason, MAX_REASON), message: cut(&failure.message) }
}

/// A message cut to its limit.
pub(crate) fn cut(message: &str) -> String {
    cut_to(message, MAX_MESSAGE)
}

fn cut_to(text: &str, limit: usize) -> String {
    let mut left = limit;
    text.chars()
        .take_while(|letter| {
            let fits = width(*letter) <= left;
            left = left.saturating_sub(width(*letter));
            fits
        })
        .collect()
}

/// Bytes of a letter in JSON.
const fn width(letter: char) -> usize {
    match letter {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..='\u{1f}' => 6,
        _ => letter.len_utf8(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_between_letters_to_what_json_takes() {
        for letter in ["x", "é", "\"", "\u{1}", "\u{1f600}", "\n", "\u{7f}"] {
            let message = cut(&letter.repeat(1000));
            let json = serde_json::to_string(&message).unwrap();
            assert!(json.len() <= MAX_MESSAGE + 2 && json.len() > MAX_MESSAGE - 6, "{json}");
        }
        assert_eq!(cut("short"), "short");
    }

    #[test]
    fn a_result_has_room_by_its_own_size_and_by_all() {
        assert_eq!(room_for("\"ok\"", 0), Some(17));
        assert_eq!(room_for(&"x".repeat(1024), 0), Some(1035));
        assert_eq!(room_for(&"x".repeat(1025), 0), None);
        assert_eq!(room_for("x", 16 * 1024 - 12), Some(12));
        assert_eq!(room_for("x", 16 * 1024 - 11), None);
    }
}
