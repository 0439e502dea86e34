//! Hands the version of aya that Cargo.lock holds to the program, which reports it.

fn main() {
    println!("cargo:rerun-if-changed=Cargo.lock");
    let lock = std::fs::read_to_string("Cargo.lock").unwrap_or_default();
    let mut lines = lock.lines();
    let version = lines
        .find(|line| *line == "name = \"aya\"")
        .and_then(|_| lines.next())
        .and_then(|line| line.strip_prefix("version = "))
        .map_or("(unknown version)", |text| text.trim_matches('"'));
    println!("cargo:rustc-env=AYA_VERSION={version}");
}
