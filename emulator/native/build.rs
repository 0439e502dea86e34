//! Compiles the C shim (`src/shim.c`) beside uBPF.

fn main() {
    println!("cargo:rerun-if-changed=src/shim.c");
    cc::Build::new().file("src/shim.c").opt_level(2).warnings_into_errors(false).compile("shim");
}
