//! One uBPF virtual machine with code in it.

use std::ffi::{c_char, c_int, c_void, CStr};

use libubpf_sys as ubpf;

use crate::insn::Insn;

extern "C" {
    fn bpfchain_error(stream: *mut c_void, format: *const c_char, ...) -> c_int;
}

/// Compiled code, in uBPF's extended mode (with a stack of ours).
pub type Jitted = unsafe extern "C" fn(*mut c_void, usize, *mut u8, usize) -> u64;

/// What the machine calls while it runs.
#[derive(Clone, Copy)]
pub struct Callbacks {
    pub dispatch: unsafe extern "C" fn(u64, u64, u64, u64, u64, u32, *mut c_void) -> u64,
    pub bounds: unsafe extern "C" fn(*mut c_void, u64, u64) -> bool,
    pub step:
        unsafe extern "C" fn(*mut c_void, c_int, *const u64, *const u8, usize, u64, *const u8),
}

/// A machine that owns its code.
pub struct Vm {
    raw: *mut ubpf::ubpf_vm,
    len: usize,
}

/// Bytes of stack of the function at `pc`: none for a trampoline at 0, whose callee takes its place.
unsafe extern "C" fn frame_size(_vm: *const ubpf::ubpf_vm, pc: u16, cookie: *mut c_void) -> c_int {
    if pc == 0 && !cookie.is_null() {
        0
    } else {
        crate::env::FRAME as c_int
    }
}

unsafe extern "C" fn any_helper(_index: u32, _vm: *const ubpf::ubpf_vm) -> bool {
    true
}

/// Take over an error message of uBPF.
unsafe fn message(text: *mut c_char) -> String {
    if text.is_null() {
        return "no reason given".into();
    }
    let said = CStr::from_ptr(text).to_string_lossy().trim().to_string();
    libc::free(text.cast());
    said
}

impl Vm {
    /// Load `code`. `context` is given to `step`; it must outlive the machine. `trampoline`: the code
    /// begins with one, which has no frame of its own.
    pub fn load(
        code: &[Insn],
        callbacks: Callbacks,
        context: *mut c_void,
        trampoline: bool,
    ) -> Result<Vm, String> {
        let bytes: Vec<u8> = code.iter().flat_map(|insn| insn.encode()).collect();
        // SAFETY: calls of uBPF's API with live arguments; `vm` is destroyed by Drop.
        unsafe {
            let raw = ubpf::ubpf_create();
            if raw.is_null() {
                return Err("uBPF cannot make a machine: out of memory".into());
            }
            let vm = Vm { raw, len: code.len() };
            ubpf::ubpf_set_error_print(raw, Some(bpfchain_error));
            ubpf::ubpf_toggle_bounds_check(raw, true);
            ubpf::ubpf_toggle_undefined_behavior_check(raw, false);
            // Not followed, only told from null.
            let cookie = if trampoline { std::ptr::dangling_mut() } else { std::ptr::null_mut() };
            ubpf::ubpf_register_stack_usage_calculator(raw, Some(frame_size), cookie);
            ubpf::ubpf_register_external_dispatcher(
                raw,
                Some(callbacks.dispatch),
                Some(any_helper),
            );
            ubpf::ubpf_set_unwind_function_index(raw, crate::rewrite::ids::TAIL_CALL);
            ubpf::ubpf_register_data_bounds_check(raw, context, Some(callbacks.bounds));
            ubpf::ubpf_register_debug_fn(raw, context, Some(callbacks.step));
            let mut error: *mut c_char = std::ptr::null_mut();
            if ubpf::ubpf_load(raw, bytes.as_ptr().cast(), bytes.len() as u32, &mut error) != 0 {
                return Err(message(error));
            }
            Ok(vm)
        }
    }

    /// The machine, for the shim.
    pub fn raw(&self) -> *const ubpf::ubpf_vm {
        self.raw
    }

    /// Compile it. The code lives as long as the machine.
    pub fn compile(&self) -> Result<Jitted, String> {
        let mut error: *mut c_char = std::ptr::null_mut();
        // SAFETY: as in `load`. uBPF's buffer is 64 KiB unless told, and the code at most some dozens
        // of bytes an instruction.
        unsafe {
            ubpf::ubpf_set_jit_code_size(self.raw, 65_536 + self.len * 128);
            let compiled = ubpf::ubpf_compile_ex(self.raw, &mut error, ubpf::ExtendedJitMode);
            compiled.ok_or_else(|| message(error))
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // SAFETY: made by ubpf_create, destroyed once.
        unsafe { ubpf::ubpf_destroy(self.raw) };
    }
}
