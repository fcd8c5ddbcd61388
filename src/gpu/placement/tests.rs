use super::*;
use proptest::prelude::*;

const GIB: u64 = 1 << 30;

fn devices(count: u32) -> Inventory {
    Inventory::uniform(count, "NVIDIA A100-SXM4-80GB", 80 * GIB, (8, 0))
}

/// The places of the devices that it takes.
fn take(free: &mut Devices, request: &GpuRequest) -> Option<Vec<usize>> {
    let parts = free.place(request)?;
    free.hold(&parts);
    Some(parts.iter().map(|part| part.place).collect())
}

fn lack(devices: &Devices, request: &GpuRequest) -> String {
    devices.lack(request).expect("it does not fit").to_string()
}

/// Two H100s, a pair of A100s joined by NVLink, and a small T4.
fn mixed() -> Inventory {
    let mut all = devices(5).nvlink(&[(2, 3)]);
    for (place, name, memory, major) in
        [(0, "NVIDIA H100 PCIe", 80, 9), (1, "NVIDIA H100 PCIe", 80, 9), (4, "T4", 16, 7)]
    {
        let device = &mut all.devices[place];
        (device.name, device.memory_bytes, device.capability.major) = (name.into(), memory * GIB, major);
    }
    all
}

#[test]
fn the_fullest_devices_are_taken_or_the_emptiest_and_of_equals_the_first() {
    let mut free = Devices::new(devices(3));
    assert_eq!(take(&mut free, &GpuRequest::bytes(50 * GIB)).unwrap(), [0]);
    assert_eq!(take(&mut free, &GpuRequest::bytes(20 * GIB)).unwrap(), [0]);
    assert_eq!(take(&mut free, &GpuRequest::bytes(10 * GIB).spread(Spread::Spread)).unwrap(), [1]);
    assert_eq!(take(&mut free, &GpuRequest::share(500).spread(Spread::Spread)).unwrap(), [2]);
    assert_eq!(take(&mut free, &GpuRequest::share(400)).unwrap(), [2]);
    assert_eq!(take(&mut free, &GpuRequest::whole(1).memory(70 * GIB)).unwrap(), [1]);
    assert_eq!(take(&mut free, &GpuRequest::bytes(75 * GIB)), None);
}

#[test]
fn eleven_shares_of_0_18_on_two_devices_leave_room_for_ten() {
    let mut free = Devices::new(devices(2));
    let share = GpuRequest::share(180);
    let places: Vec<_> = (0..11).map_while(|_| take(&mut free, &share)).flatten().collect();
    assert_eq!(places, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]);
    assert_eq!(lack(&free, &share), "0.18 GPUs wanted, 0.1 there");
    assert!(take(&mut free, &GpuRequest::share(100)).is_some(), "what is left is a tenth, exactly");
    assert_eq!(free.free_of(&share), "GPU 0 has 0 and 3 bytes free; GPU 1 has 0.1 and 8 GiB free");
}

#[test]
fn pairs_that_are_joined_are_found_and_kept_together() {
    let pair = |nvlink| GpuRequest::whole(2).nvlink(nvlink);
    let mut free = Devices::new(devices(4).nvlink(&[(0, 3), (1, 2)]));
    assert_eq!(take(&mut free, &GpuRequest::whole(1)).unwrap(), [0]);
    assert_eq!(take(&mut free, &pair(NvLink::Prefer)).unwrap(), [1, 2]);
    assert_eq!(take(&mut free, &pair(NvLink::Require)), None);
    assert_eq!(take(&mut free, &pair(NvLink::Prefer)), None, "one device is left");
    let mut free = Devices::new(devices(2));
    assert_eq!(take(&mut free, &pair(NvLink::Prefer)).unwrap(), [0, 1]);
}

#[test]
fn what_can_never_be_says_how_many_devices_have_each_part_of_it() {
    let all = Devices::new(mixed());
    for (request, expected) in [
        (GpuRequest::whole(6), "6 GPUs wanted, 5 there"),
        (GpuRequest::whole(1).named("H200"), "1 GPUs named \"H200\" wanted, 0 there (of 5 devices, 0 named \"H200\")"),
        (
            GpuRequest::whole(2).named("a100").capability(9, 0).memory(40 * GIB),
            "2 GPUs with 40 GiB each named \"a100\" of compute capability 9.0 or newer wanted, 0 there (of 5 devices, \
             2 named \"a100\", 2 of compute capability 9.0 or newer, 4 with 40 GiB, 0 all of that)",
        ),
        (GpuRequest::bytes(81 * GIB), "81 GiB of a GPU wanted, 80 GiB there (of 5 devices, 0 with 81 GiB)"),
        (GpuRequest::whole(3).nvlink(NvLink::Require), "3 GPUs joined by NVLink wanted, 2 there"),
        (
            GpuRequest::share(250).memory(100 * GIB),
            "0.25 GPUs with 100 GiB wanted, 0 there (of 5 devices, 0 with 100 GiB)",
        ),
    ] {
        assert_eq!(lack(&all, &request), expected);
    }
    let nothing = Devices::default();
    assert_eq!(lack(&nothing, &GpuRequest::whole(1).named("H200")), "1 GPUs named \"H200\" wanted, 0 there");
}

#[test]
fn of_two_nodes_the_one_with_more_of_what_is_wanted_is_nearer() {
    let request = GpuRequest::whole(2).named("A100").capability(9, 0);
    let gap = |devices: Inventory| Devices::new(devices).lack(&request).unwrap().gap();
    let hopper = Inventory::uniform(1, "H200", GIB, (9, 0));
    let (none, old, some) = (gap(Inventory::default()), gap(Inventory::uniform(9, "T4", GIB, (7, 5))), gap(hopper));
    assert!(some < old && old < none, "{some} {old} {none}");
    assert!(gap(Inventory::uniform(1, "A100", GIB, (9, 0))) < some);
}

#[test]
fn what_other_processes_use_counts_for_those_who_say_how_much_they_need() {
    let mut free = Devices::new(devices(2));
    free.rooms[0].external = 70 * GIB;
    assert_eq!(free.place(&GpuRequest::bytes(20 * GIB)).unwrap()[0].place, 1);
    assert_eq!(free.place(&GpuRequest::whole(1)).unwrap()[0].place, 1, "the one that others leave alone");
    free.rooms[1].refused = Some(Box::new(GpuError::DeviceLost { device: 1 }));
    let request = GpuRequest::bytes(20 * GIB);
    assert_eq!(lack(&free, &request), "20 GiB of a GPU wanted, 10 GiB there");
    assert_eq!(
        free.free_of(&request),
        "GPU 0 has 1 and 80 GiB free, 70 GiB of that used by other processes; GPU 1 gives no leases: GPU 1 is lost: it \
         fell off the bus or needs a reset"
    );
    assert!(free.is_held_up(&request) && !free.is_held_up(&GpuRequest::bytes(81 * GIB)));
    assert_eq!(free.place(&GpuRequest::whole(1)).unwrap()[0].place, 0, "it is taken as it is");
}

#[test]
fn a_bundle_has_what_it_asked_for_and_no_more() {
    let all = Devices::new(mixed());
    let bundle = |request: &GpuRequest| all.part(&all.place(request).unwrap());
    let of_share = bundle(&GpuRequest::share(500));
    assert!(of_share.place(&GpuRequest::share(500)).is_some(), "all of it");
    assert_eq!(lack(&of_share, &GpuRequest::share(501)), "0.501 GPUs wanted, 0.5 there");
    // A whole device in the bundle has the bytes of the bundle.
    let small = bundle(&GpuRequest::whole(1).named("H100").memory(20 * GIB));
    assert_eq!(small.place(&GpuRequest::whole(1)).unwrap()[0].bytes, 20 * GIB);
    assert_eq!(small.place(&GpuRequest::share(250)).unwrap()[0].bytes, 5 * GIB);
    assert_eq!(
        lack(&small, &GpuRequest::bytes(21 * GIB)),
        "21 GiB of a GPU wanted, 20 GiB there (of 1 devices, 0 with 21 GiB)"
    );
}

#[test]
fn a_bundle_that_is_nowhere_yet_promises_what_it_asks_for() {
    let request = GpuRequest::whole(2).named("NVIDIA H100").capability(9, 0).nvlink(NvLink::Require);
    let promised = Devices::promised(Some(&request));
    for fits in [
        request.clone(),
        GpuRequest::whole(1).named("h100"),
        GpuRequest::whole(2).capability(8, 0),
        GpuRequest::bytes(70 * GIB),
        GpuRequest::share(300),
    ] {
        assert!(promised.place(&fits).is_some(), "{fits}");
    }
    for too_much in [GpuRequest::whole(3), GpuRequest::whole(1).named("A100"), GpuRequest::whole(1).capability(9, 1)] {
        assert!(promised.place(&too_much).is_none(), "{too_much}");
    }
    let small = Devices::promised(Some(&GpuRequest::whole(1).memory(20 * GIB)));
    assert!(small.place(&GpuRequest::whole(1)).is_some());
    assert!(small.place(&GpuRequest::bytes(21 * GIB)).is_none());
    assert!(Devices::promised(Some(&GpuRequest::whole(u32::MAX))).place(&GpuRequest::whole(1)).is_none());
    assert_eq!(Devices::promised(None), Devices::default());
}

fn any_request(random: &mut fastrand::Rng) -> GpuRequest {
    let mut request = match random.u8(..4) {
        0 => GpuRequest::whole(random.u32(1..=4)),
        1 => GpuRequest::share(random.u16(1..=1000)),
        2 => GpuRequest::bytes(random.u64(1..=100)),
        _ => GpuRequest::share(random.u16(1..=1000)).memory(random.u64(0..=100)),
    };
    request.nvlink = [NvLink::Any, NvLink::Prefer, NvLink::Require][random.usize(..3)];
    request.spread = [Spread::Pack, Spread::Spread][random.usize(..2)];
    if random.u8(..4) == 0 {
        request = request.named(["one", "two"][random.usize(..2)]);
    }
    request
}

fn any_inventory(random: &mut fastrand::Rng) -> Inventory {
    let count = random.u32(1..=6);
    let mut inventory = Inventory::uniform(count, "", 0, (8, 0));
    for device in &mut inventory.devices {
        device.name = ["one", "two", "One and Two"][random.usize(..3)].into();
        device.memory_bytes = random.u64(1..=100);
    }
    for a in 0..count as usize {
        for b in 0..a {
            if random.bool() {
                inventory = inventory.nvlink(&[(a, b)]);
            }
        }
    }
    inventory
}

/// What was leased, counted anew from the leases alone.
fn check(all: &Devices, free: &Devices, held: &[(GpuRequest, Vec<Part>)]) {
    for (place, device) in all.inventory.devices.iter().enumerate() {
        let parts = || held.iter().flat_map(|(_, parts)| parts).filter(|part| part.place == place);
        let time: u32 = parts().map(|part| part.thousandths).sum();
        let bytes: u64 = parts().map(|part| part.bytes).sum();
        assert!(time <= WHOLE && bytes <= device.memory_bytes, "{place}: {time} thousandths, {bytes} bytes");
        assert_eq!(
            (free.rooms[place].thousandths, free.rooms[place].bytes),
            (WHOLE - time, device.memory_bytes - bytes)
        );
    }
}

#[test]
fn twenty_thousand_random_sequences_of_leases_never_exceed_what_there_is_and_give_everything_back() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..20_000 {
        let all = Devices::new(any_inventory(&mut random));
        let (mut free, mut held) = (all.clone(), Vec::new());
        for _ in 0..12 {
            if random.u8(..3) == 0 && !held.is_empty() {
                let (_, parts): (GpuRequest, Vec<Part>) = held.swap_remove(random.usize(..held.len()));
                free.give(&parts);
                continue;
            }
            let request = any_request(&mut random);
            let Some(parts) = free.place(&request) else {
                assert!(free.lack(&request).is_some_and(|lack| lack.gap() > 0.0), "{request}");
                continue;
            };
            assert_eq!(parts.len(), request.devices as usize);
            assert!(parts.windows(2).all(|pair| pair[0].place < pair[1].place), "each device once");
            free.hold(&parts);
            held.push((request, parts));
        }
        check(&all, &free, &held);
        held.drain(..).for_each(|(_, parts)| free.give(&parts));
        assert_eq!(free, all);
    }
}

/// All sets of so many of these, in order.
fn sets(from: &[usize], count: usize) -> Vec<Vec<usize>> {
    match (count, from) {
        (0, _) => vec![Vec::new()],
        (_, []) => Vec::new(),
        (_, [first, rest @ ..]) => {
            let with = sets(rest, count - 1).into_iter().map(|set| [vec![*first], set].concat());
            with.chain(sets(rest, count)).collect()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Against a search through all sets of devices.
    #[test]
    fn a_set_is_found_if_there_is_one_and_no_better_one_is(seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut free = Devices::new(any_inventory(&mut random));
        for room in &mut free.rooms {
            if random.bool() {
                (room.thousandths, room.bytes) = (random.u32(..=WHOLE), random.u64(..=room.bytes));
            }
            room.external = if random.u8(..4) == 0 { random.u64(..50) } else { 0 };
        }
        let request = any_request(&mut random);
        let (inventory, rooms) = (&free.inventory, &free.rooms);
        let roomy: Vec<usize> =
            (0..rooms.len()).filter(|at| has_room(&inventory.devices[*at], &rooms[*at], &request)).collect();
        let joined = |set: &[usize]| {
            set.iter().all(|a| set.iter().all(|b| a == b || inventory.link(*a, *b) == Some(Link::NvLink)))
        };
        let all = sets(&roomy, request.devices as usize);
        let (linked, any): (Vec<_>, Vec<_>) = all.into_iter().partition(|set| joined(set));
        let possible = match request.nvlink {
            NvLink::Require => linked,
            NvLink::Prefer if !linked.is_empty() => linked,
            NvLink::Prefer | NvLink::Any => [linked, any].concat(),
        };
        let cost = |set: &[usize]| -> i128 {
            set.iter().map(|at| rank(&inventory.devices[*at], &rooms[*at], &request)).sum()
        };
        let found = free.place(&request).map(|parts| parts.iter().map(|part| part.place).collect::<Vec<_>>());
        let best = possible.iter().map(|set| cost(set)).min();
        prop_assert_eq!(found.as_ref().map(|set| cost(set)), best);
        prop_assert!(found.is_none_or(|set| possible.contains(&set)));
        prop_assert_eq!(free.lack(&request).is_none(), best.is_some());
    }

    /// What a bundle promises to a task it has wherever it lies, but for memory that it did not ask for by number.
    #[test]
    fn what_fits_a_bundle_that_says_how_much_fits_it_everywhere(seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        let all = Devices::new(any_inventory(&mut random));
        let bundle = any_request(&mut random).memory(random.u64(1..=100));
        let task = any_request(&mut random);
        if let Some(parts) = all.place(&bundle)
            && Devices::promised(Some(&bundle)).place(&task).is_some()
        {
            // Elsewhere the devices may by chance be joined, or be of that kind.
            prop_assert!(all.part(&parts).place(&task).is_some(), "{} in {}", task, bundle);
        }
    }
}
