//! A TUN device with checksum and segmentation offloads: the kernel hands over super-packets of up to 64 KB, one system
//! call instead of 44. See Documentation/networking/tuntap.rst and drivers/net/tun.c in Linux.

use std::{
    fs::{File, OpenOptions},
    io,
};

use rustix::ioctl::{IntegerSetter, Opcode, Setter, ioctl, opcode};

// include/uapi/linux/if_tun.h
const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);
const TUNSETOFFLOAD: Opcode = opcode::write::<u32>(b'T', 208);
const TUNSETVNETLE: Opcode = opcode::write::<i32>(b'T', 220);
const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const TUN_F_CSUM: usize = 0x01;
const TUN_F_TSO4: usize = 0x02;
const TUN_F_TSO6: usize = 0x04;
const TUN_F_TSO_ECN: usize = 0x08;
const TUN_F_USO4: usize = 0x20;
const TUN_F_USO6: usize = 0x40;

/// `struct ifreq` as `TUNSETIFF` uses it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// Makes a device of this name in the calling thread's network namespace. It lives as long as the file.
#[expect(unsafe_code, reason = "the ioctls of TUN devices have no safe wrapper")]
pub(crate) fn open(name: &str) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let mut request = Request { name: [0; 16], flags: IFF_TUN | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
    for (to, from) in request.name.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    let tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    // SAFETY: `TUNSETIFF` reads and writes one `struct ifreq` (40 bytes, the size of `Request`) behind the pointer,
    // which `Setter` owns; `TUNSETVNETLE` reads one int behind its pointer; `TUNSETOFFLOAD` takes a number in place of
    // a pointer.
    unsafe {
        ioctl(&file, Setter::<TUNSETIFF, Request>::new(request))?;
        ioctl(&file, Setter::<TUNSETVNETLE, i32>::new(1))?;
        // UDP segmentation came with Linux 6.2.
        let with_udp = IntegerSetter::<TUNSETOFFLOAD>::new_usize(tcp | TUN_F_USO4 | TUN_F_USO6);
        if ioctl(&file, with_udp).is_err() {
            ioctl(&file, IntegerSetter::<TUNSETOFFLOAD>::new_usize(tcp))?;
        }
    }
    Ok(file)
}
