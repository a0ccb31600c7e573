//! Sizes that every backend keeps, so that a job which fits one broker fits each of them.

/// The limits of one broker. A backend may be stricter than the defaults, never laxer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Payload bytes of one job.
    pub max_payload: usize,
    /// Result bytes of one job.
    pub max_result: usize,
}

impl Limits {
    /// Characters of a job id.
    pub const JOB_ID: usize = 200;
    /// Characters of a job type.
    pub const JOB_TYPE: usize = 128;
    /// Characters of an ordering key.
    pub const ORDERING_KEY: usize = 128;
    /// Characters of a content type.
    pub const CONTENT_TYPE: usize = 128;
    /// Bytes of all names and values of a job's headers.
    pub const HEADERS: usize = 8 * 1024;
    /// Bytes of a completion's context.
    pub const CONTEXT: usize = 1024;
    /// Bytes of a failure's message; longer ones are cut.
    pub const MESSAGE: usize = 1024;
    /// Jobs, receipts or completions in one call.
    pub const BATCH: usize = 1000;
    /// The furthest a job can be delayed.
    pub const MAX_DELAY: std::time::Duration = std::time::Duration::from_secs(366 * 24 * 3600);
    /// How long after its end a job that notifies is kept for somebody who neither acknowledges nor unpins it: an
    /// installation that is gone must not fill the disk.
    pub const PIN: std::time::Duration = std::time::Duration::from_secs(30 * 24 * 3600);
    /// Results up to this size travel inside the completion.
    pub const INLINE_RESULT: usize = 1024;
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_payload: 1024 * 1024, max_result: 1024 * 1024 }
    }
}
