//! Error numbers of the kernel that maps and helpers return (asm-generic/errno*.h).

pub const EPERM: i64 = 1;
pub const ENOENT: i64 = 2;
pub const E2BIG: i64 = 7;
pub const EAGAIN: i64 = 11;
pub const ENOMEM: i64 = 12;
pub const EACCES: i64 = 13;
pub const EFAULT: i64 = 14;
pub const EEXIST: i64 = 17;
pub const EINVAL: i64 = 22;
pub const ENOSPC: i64 = 28;
pub const ERANGE: i64 = 34;
pub const EOPNOTSUPP: i64 = 95;
pub const EALREADY: i64 = 114;
/// Kernel-internal, and yet what several helpers return.
pub const ENOTSUPP: i64 = 524;
