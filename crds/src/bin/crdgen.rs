//! Writes the CustomResourceDefinitions into a folder, or checks that they are there unchanged.
//!
//! `crdgen DIR` writes, `crdgen --check DIR` exits 1 on drift.

use longshore_crds::{definitions, yaml};
use std::{error::Error, fs, path::Path, process::ExitCode};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (check, folder) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--check", folder] => (true, folder.to_owned()),
        [folder] if !folder.starts_with('-') => (false, folder.to_owned()),
        _ => return Err("usage: crdgen [--check] DIR".into()),
    };
    let mut drifted = false;
    for definition in definitions() {
        let path = Path::new(&folder).join(format!("{}.yaml", definition.spec.names.plural));
        let text = yaml(&definition);
        if !check {
            fs::write(&path, &text)?;
        } else if fs::read_to_string(&path).unwrap_or_default() != text {
            eprintln!("{} is not what crds/src says: run `make crds`", path.display());
            drifted = true;
        }
    }
    Ok(if drifted { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
