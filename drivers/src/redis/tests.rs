//! What the suite does not see.
