//! All scenarios, by what they are about.

mod credentials;
mod drain;
mod faults;
mod handlers;
mod hello;
mod installations;
mod lifecycle;
mod objects;
mod operators;
mod producers;
mod scaling;
mod workflow;

use crate::Scenario;

/// All scenarios.
pub fn all() -> Vec<Scenario> {
    [
        hello::ALL,
        credentials::ALL,
        workflow::ALL,
        scaling::ALL,
        handlers::ALL,
        objects::ALL,
        producers::ALL,
        drain::ALL,
        lifecycle::ALL,
        faults::ALL,
        operators::ALL,
        installations::ALL,
    ]
    .concat()
}

/// Makes a table of scenarios; each is named as its function.
macro_rules! scenarios {
    ($($name:ident $([$($flag:ident),*])?),* $(,)?) => {
        pub(super) const ALL: &[crate::Scenario] = &[$({
            #[allow(unused_mut, clippy::allow_attributes, clippy::allow_attributes_without_reason)]
            let mut scenario = crate::Scenario {
                name: stringify!($name),
                needs_host: false,
                alone: false,
                run: |world| Box::pin($name(world)),
            };
            $($(scenario.$flag = true;)*)?
            scenario
        }),*];
    };
}
use scenarios;
