//! A bpffs that only this process sees: aya shares maps between objects through pins alone.

use std::ffi::CString;
use std::io::Error;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The mount. Existing pins stay reachable under their own paths. Should the process be killed,
/// the mount goes with its namespace.
pub struct PrivateBpffs {
    root: PathBuf,
}

impl PrivateBpffs {
    /// Leaves the caller's mount namespace and mounts. Called before any thread is started.
    pub fn mount() -> Result<Self, String> {
        let host =
            |what: &str| format!("host: {what}: {} (root is needed)", Error::last_os_error());
        // Old kernels (before 5.11) charge maps to the memlock limit.
        let unlimited = libc::rlimit {
            rlim_cur: libc::RLIM_INFINITY,
            rlim_max: libc::RLIM_INFINITY,
        };
        // SAFETY: plain system calls; every pointer outlives its call.
        unsafe {
            libc::setrlimit(libc::RLIMIT_MEMLOCK, &unlimited);
            if libc::unshare(libc::CLONE_NEWNS) != 0 {
                return Err(host("unshare"));
            }
            let flags = libc::MS_REC | libc::MS_PRIVATE;
            let none = std::ptr::null();
            if libc::mount(none, c"/".as_ptr(), none, flags, none.cast()) != 0 {
                return Err(host("make mounts private"));
            }
        }
        let root = std::env::temp_dir().join(format!("ayatest-bpffs-{}", std::process::id()));
        std::fs::create_dir(&root).map_err(|e| format!("host: {}: {e}", root.display()))?;
        let (target, kind) = (c_path(&root), c"bpf");
        // SAFETY: as above.
        let failed = unsafe {
            libc::mount(
                kind.as_ptr(),
                target.as_ptr(),
                kind.as_ptr(),
                0,
                c"mode=0700".as_ptr().cast(),
            )
        } != 0;
        if failed {
            let text = host("mount bpf");
            let _ = std::fs::remove_dir(&root);
            return Err(text);
        }
        Ok(Self { root })
    }

    /// A fresh folder of pins, so that objects loaded alone share nothing.
    pub fn folder(&self, number: usize) -> Result<PathBuf, String> {
        let path = self.root.join(format!("o{number}"));
        std::fs::create_dir(&path).map_err(|e| format!("host: {}: {e}", path.display()))?;
        Ok(path)
    }
}

impl Drop for PrivateBpffs {
    fn drop(&mut self) {
        // SAFETY: the path outlives the call. Failing leaves an empty folder in the temporary
        // directory and nothing in the kernel.
        unsafe { libc::umount2(c_path(&self.root).as_ptr(), libc::MNT_DETACH) };
        let _ = std::fs::remove_dir(&self.root);
    }
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a temporary path holds no NUL")
}
