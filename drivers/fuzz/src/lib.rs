//! What must hold for any bytes. The fuzzer calls these; so does the test `fuzz_corpus` of the drivers, which replays the
//! corpus and changed copies of it.

mod envelope;
mod http;
mod rows;

/// JSON of the contract.
pub fn envelope(data: &[u8]) {
    envelope::envelope(data);
}

/// Requests to every route.
pub fn http(data: &[u8]) {
    http::http(data);
}

/// Damaged rows.
pub fn rows(data: &[u8]) {
    rows::rows(data);
}
