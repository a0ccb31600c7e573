//! The fuzz targets without a fuzzer: the committed corpus and changed copies of it, the same ones each time.

#![expect(clippy::unwrap_used, reason = "it is a test")]

#[path = "../fuzz/src/envelope.rs"]
mod envelope;
#[path = "../fuzz/src/http.rs"]
mod http_requests;
#[path = "../fuzz/src/rows.rs"]
mod rows;

use std::{fs, panic, path::Path};

/// Numbers that look like chance and are the same each time (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((mixed ^ (mixed >> 31)) % sides as u64).unwrap()
    }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|file| fs::read(file).unwrap()).collect()
}

/// One to four changes: a byte, a piece of another seed, a piece less, a piece twice.
fn change(seed: &[u8], other: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut data = seed.to_vec();
    for _ in 0..=dice.roll(4) {
        if data.is_empty() {
            break;
        }
        let at = dice.roll(data.len());
        let end = at + dice.roll(data.len() - at + 1).min(16);
        match dice.roll(5) {
            0 => data[at] = u8::try_from(dice.roll(256)).unwrap(),
            1 => data[at] ^= 1 << dice.roll(8),
            2 => drop(data.drain(at..end)),
            3 => {
                let piece = data[at..end].to_vec();
                data.splice(at..at, piece);
            }
            _ => {
                let from = dice.roll(other.len().max(1)).min(other.len());
                let to = (from + 16).min(other.len());
                data.splice(at..end, other[from..to].iter().copied());
            }
        }
    }
    data
}

fn replay(target: &str, changed: usize, check: fn(&[u8])) {
    let seeds = corpus(target);
    assert!(!seeds.is_empty(), "no corpus for {target}");
    let mut dice = Dice(20_261_127);
    let copies: Vec<_> = (0..changed)
        .map(|number| {
            let other = &seeds[dice.roll(seeds.len())];
            change(&seeds[number % seeds.len()], other, &mut dice)
        })
        .collect();
    for data in seeds.iter().chain(&copies) {
        let held = panic::catch_unwind(|| check(data)).is_ok();
        assert!(held, "{target} breaks for {:?}", data.escape_ascii().to_string());
    }
}

#[test]
fn json_of_the_contract_never_panics_and_reads_back() {
    replay("envelope", 20_000, envelope::envelope);
}

#[test]
fn any_request_is_answered_and_every_refusal_is_a_problem() {
    replay("http", 4_000, http_requests::http);
}

#[test]
fn damaged_rows_cost_the_rows_beside_them_nothing() {
    replay("rows", 60, rows::rows);
}
