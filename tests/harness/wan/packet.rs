//! Super-packets: what the kernel hands over instead of a row of packets when the device does segmentation, up to 64 KB
//! behind a `virtio_net_hdr` (virtio 1.2, section 5.1.6). The link loses wire packets, so a super-packet that loses some
//! is cut into the rows between them. What the cuts change in the headers is what the kernel's own segmentation
//! changes (`tcp_gso_segment` and `__udp_gso_segment` in net/ipv4).

/// Bytes of the `virtio_net_hdr` before each packet.
pub(crate) const PREFIX: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
const GSO_ECN: u8 = 0x80;
const TCP_FIN_AND_PSH: u8 = 0x09;
const TCP_CWR: u8 = 0x80;

/// How a packet falls into wire packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bytes of IP and transport headers, which each wire packet has.
    headers: usize,
    /// Bytes behind the headers, of all together.
    payload: usize,
    /// Payload of each wire packet but the last.
    each: usize,
    /// Where the transport header starts in the IP packet.
    transport: usize,
    tcp: bool,
}

impl Layout {
    /// Of a packet with its prefix. Anything but a sound super-packet counts as one wire packet.
    pub(crate) fn of(packet: &[u8]) -> Self {
        let ip = packet.get(PREFIX..).unwrap_or(&[]);
        Self::of_super(packet, ip).unwrap_or(Self { headers: ip.len(), payload: 0, each: 0, transport: 0, tcp: false })
    }

    fn of_super(packet: &[u8], ip: &[u8]) -> Option<Self> {
        let [flags, gso, ..] = *packet else { return None };
        let tcp = match gso & !GSO_ECN {
            GSO_TCP4 | GSO_TCP6 => true,
            GSO_UDP => false,
            _ => return None,
        };
        let each = usize::from(u16::from_le_bytes([*packet.get(4)?, *packet.get(5)?]));
        let transport = usize::from(u16::from_le_bytes([*packet.get(6)?, *packet.get(7)?]));
        let headers = transport + if tcp { usize::from(ip.get(transport + 12)? >> 4) * 4 } else { 8 };
        let payload = ip.len().checked_sub(headers)?;
        (flags & NEEDS_CHECKSUM != 0 && each > 0 && transport >= 20).then_some(Self {
            headers,
            payload,
            each,
            transport,
            tcp,
        })
    }

    /// How many wire packets it is.
    pub(crate) fn count(&self) -> usize {
        if self.each == 0 { 1 } else { self.payload.div_ceil(self.each).max(1) }
    }

    /// Bytes of each wire packet, IP header included.
    pub(crate) fn sizes(self) -> impl Iterator<Item = u64> {
        (0..self.count()).map(move |i| self.bytes(i, i + 1))
    }

    /// Bytes on the wire of the packets from `first` to before `end`.
    pub(crate) fn bytes(&self, first: usize, end: usize) -> u64 {
        let (from, to) = self.payload_of(first, end);
        u64::try_from((end - first) * self.headers + to - from).unwrap_or(u64::MAX)
    }

    fn payload_of(&self, first: usize, end: usize) -> (usize, usize) {
        ((first * self.each).min(self.payload), (end * self.each).min(self.payload))
    }

    /// The packets from `first` to before `end` as a packet of their own. The range is not empty and lies within
    /// [`Self::count`].
    pub(crate) fn cut(&self, packet: &[u8], first: usize, end: usize) -> Vec<u8> {
        let (from, to) = self.payload_of(first, end);
        let headers_end = PREFIX + self.headers;
        let mut out = Vec::with_capacity(headers_end + to - from);
        out.extend_from_slice(&packet[..headers_end]);
        out.extend_from_slice(&packet[headers_end + from..headers_end + to]);
        let last = end == self.count();
        let (prefix, ip) = out.split_at_mut(PREFIX);
        if to - from <= self.each {
            prefix[1] = 0;
            prefix[4..6].fill(0);
        } else if first > 0 {
            prefix[1] &= !GSO_ECN;
        }
        let shorter = self.fix_ip(ip, first);
        let segment = &mut ip[self.transport..];
        if self.tcp {
            let sequence = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
            let sequence = sequence.wrapping_add(u32::try_from(from).unwrap_or(0));
            segment[4..8].copy_from_slice(&sequence.to_be_bytes());
            if !last {
                segment[13] &= !TCP_FIN_AND_PSH;
            }
            if first > 0 {
                segment[13] &= !TCP_CWR;
            }
            segment[16..18].copy_from_slice(&shorter.to_be_bytes());
        } else {
            let length = u16::try_from(segment.len()).unwrap_or(0);
            segment[4..6].copy_from_slice(&length.to_be_bytes());
            segment[6..8].copy_from_slice(&shorter.to_be_bytes());
        }
        out
    }

    /// Puts length, identification and checksum of the IP header right. Gives the sum of the pseudo-header, which stands
    /// in the transport's checksum field until the device, or here the receiver, completes it.
    fn fix_ip(&self, ip: &mut [u8], first: usize) -> u16 {
        let length = |bytes: usize| u16::try_from(bytes).unwrap_or(0).to_be_bytes();
        let transport_bytes = ip.len() - self.transport;
        let addresses = if ip[0] >> 4 == 4 {
            let total = length(ip.len());
            ip[2..4].copy_from_slice(&total);
            let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(u16::try_from(first).unwrap_or(0));
            ip[4..6].copy_from_slice(&id.to_be_bytes());
            ip[10..12].fill(0);
            let sum = !folded(&ip[..self.transport], 0);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            &ip[12..20]
        } else {
            let payload = length(ip.len() - 40);
            ip[4..6].copy_from_slice(&payload);
            &ip[8..40]
        };
        let protocol = if self.tcp { 6 } else { 17 };
        folded(addresses, u64::try_from(transport_bytes).unwrap_or(0) + protocol)
    }
}

/// The ones' complement sum of RFC 1071 of these bytes and a number.
fn folded(bytes: &[u8], start: u64) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EACH: usize = 1000;

    /// A super-packet of 3 and a half wire packets as the kernel hands it over: checksums of the transport not completed.
    fn super_packet(v6: bool, tcp: bool) -> Vec<u8> {
        let payload: Vec<u8> = (0..3500_u32).map(|i| (i % 251).to_le_bytes()[0]).collect();
        let transport = if tcp {
            let mut header =
                vec![0x12, 0x34, 0x14, 0x51, 0xff, 0xff, 0xfe, 0x00, 0, 0, 0, 9, 0x80, 0x99, 1, 0, 0, 0, 0, 0];
            header.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
            header
        } else {
            vec![0x12, 0x34, 0x14, 0x51, 0x0d, 0xb4, 0, 0]
        };
        let protocol = if tcp { 6 } else { 17 };
        let total = u16::try_from(transport.len() + payload.len()).unwrap();
        let ip = if v6 {
            let mut header = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
            header[4..6].copy_from_slice(&total.to_be_bytes());
            header.extend([0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            header.extend([0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
            header
        } else {
            let mut header = vec![0x45, 0, 0, 0, 0xff, 0xff, 0x40, 0, 64, protocol, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2];
            header[2..4].copy_from_slice(&(total + 20).to_be_bytes());
            header
        };
        let gso = if !tcp {
            GSO_UDP
        } else if v6 {
            GSO_TCP6 | GSO_ECN
        } else {
            GSO_TCP4 | GSO_ECN
        };
        let mut out = vec![NEEDS_CHECKSUM, gso];
        out.extend(u16::try_from(ip.len() + transport.len()).unwrap().to_le_bytes());
        out.extend(u16::try_from(EACH).unwrap().to_le_bytes());
        out.extend(u16::try_from(ip.len()).unwrap().to_le_bytes());
        out.extend(if tcp { 16_u16 } else { 6 }.to_le_bytes());
        out.extend(ip);
        out.extend(transport);
        out.extend(payload);
        out
    }

    /// What a device does last: completes the checksum. Then sums as a receiver does, pseudo-header and all: 0xffff is right.
    fn receiver_sum(packet: &[u8], tcp: bool) -> u16 {
        let start = usize::from(u16::from_le_bytes([packet[6], packet[7]]));
        let offset = usize::from(u16::from_le_bytes([packet[8], packet[9]]));
        let mut ip = packet[PREFIX..].to_vec();
        let sum = !folded(&ip[start..], 0);
        ip[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
        let addresses = if ip[0] >> 4 == 4 { 12..20 } else { 8..40 };
        let protocol = if tcp { 6 } else { 17 };
        let rest = u64::try_from(ip.len() - start).unwrap() + protocol + u64::from(folded(&ip[addresses], 0));
        folded(&ip[start..], rest)
    }

    #[test]
    fn a_super_packet_is_counted_as_its_wire_packets() {
        let layout = Layout::of(&super_packet(false, true));
        assert_eq!(layout.sizes().collect::<Vec<_>>(), [1052, 1052, 1052, 552]);
        assert_eq!(layout.bytes(0, 4), 3 * 1052 + 552);
        let layout = Layout::of(&super_packet(true, false));
        assert_eq!(layout.sizes().collect::<Vec<_>>(), [1048, 1048, 1048, 548]);
    }

    #[test]
    fn a_plain_packet_is_one() {
        let packet = [&[0; PREFIX][..], &[0x45; 84]].concat();
        assert_eq!(Layout::of(&packet).sizes().collect::<Vec<_>>(), [84]);
    }

    #[test]
    fn nonsense_is_one_packet_and_no_panic() {
        let sound = super_packet(false, true);
        for length in 0..sound.len().min(120) {
            assert!(Layout::of(&sound[..length]).count() >= 1);
        }
        for at in 0..PREFIX + 40 {
            for value in [0, 1, 0x7f, 0xff] {
                let mut broken = sound.clone();
                broken[at] = value;
                let layout = Layout::of(&broken);
                assert!(layout.sizes().sum::<u64>() >= 1);
            }
        }
    }

    #[test]
    fn each_cut_is_a_sound_packet_and_together_they_are_the_whole() {
        for (v6, tcp) in [(false, true), (false, false), (true, true), (true, false)] {
            let whole = super_packet(v6, tcp);
            let layout = Layout::of(&whole);
            for at in [&[0, 1, 2, 3, 4][..], &[0, 2, 4], &[0, 3, 4], &[0, 1, 4], &[0, 4]] {
                let mut payload = Vec::new();
                for pair in at.windows(2) {
                    let cut = pair[0]..pair[1];
                    let packet = layout.cut(&whole, cut.start, cut.end);
                    check(&packet, &layout, &cut, (v6, tcp));
                    payload.extend_from_slice(&packet[PREFIX + layout.headers..]);
                }
                assert_eq!(payload, whole[PREFIX + layout.headers..]);
            }
        }
    }

    fn check(packet: &[u8], whole: &Layout, cut: &std::ops::Range<usize>, (v6, tcp): (bool, bool)) {
        let ip = &packet[PREFIX..];
        let said = |at: usize| u16::from_be_bytes([ip[at], ip[at + 1]]);
        let transport = &ip[whole.transport..];
        assert_eq!(receiver_sum(packet, tcp), 0xffff, "{cut:?}");
        let again = Layout::of(packet);
        assert_eq!(again.count(), cut.len(), "{cut:?}");
        assert_eq!(again.bytes(0, again.count()), whole.bytes(cut.start, cut.end));
        let length = u16::try_from(ip.len()).unwrap();
        if v6 {
            assert_eq!(said(4), length - 40);
        } else {
            assert_eq!(said(2), length);
            assert_eq!(folded(&ip[..20], 0), 0xffff);
            // The identification goes on from 0xffff.
            assert_eq!(said(4), 0xffff_u16.wrapping_add(u16::try_from(cut.start).unwrap()));
        }
        if tcp {
            let sequence = u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
            assert_eq!(sequence, 0xffff_fe00_u32.wrapping_add(u32::try_from(cut.start * EACH).unwrap()));
            let flags = transport[13];
            assert_eq!(flags & TCP_FIN_AND_PSH != 0, cut.end == 4, "{cut:?}");
            assert_eq!(flags & TCP_CWR != 0, cut.start == 0, "{cut:?}");
            assert_eq!(flags & 0x10, 0x10);
        } else {
            assert_eq!(
                u16::from_be_bytes([transport[4], transport[5]]),
                length - u16::try_from(whole.transport).unwrap()
            );
        }
    }
}
