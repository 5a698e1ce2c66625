//! `vu-blk` with several threads: which of them processes which queue, and that they do not wait for
//! each other.

#[path = "clients/mod.rs"]
mod clients;

#[path = "common/memory_trace.rs"]
mod memory_trace;

use clients::{
    BLOCK, Backend, BlkClient, Disk, Options, Program, QueueGroup, Setup, TempDir, Wait,
};
use memory_trace::MemoryTrace;

const DEPTH: usize = 32;

fn serve(program: &Program, queues: u16, iothreads: u16) -> (Backend, BlkClient) {
    let mut options = Options::new(Disk::Null(1 << 30));
    options.queues = queues;
    options.iothreads = iothreads;
    let backend = Backend::start_program(program, &options);
    let setup = Setup {
        queues: queues.into(),
        queue_size: 512,
        depth: DEPTH,
        buffer_len: BLOCK,
        event_idx: true,
        wait: Wait::EventFd,
    };
    let client = BlkClient::connect(backend.socket_str(), setup).expect("connect");
    (backend, client)
}

/// At least `count` reads on the group's queues together.
fn read(group: &mut QueueGroup<'_>, count: usize) {
    let mut done = 0;
    while done < count {
        for queue in group.queues() {
            (0..DEPTH).for_each(|slot| queue.read(slot, 0).expect("read"));
            queue.kick().expect("kick");
        }
        let mut in_flight = DEPTH * group.queues().len();
        while in_flight > 0 {
            group.wait().expect("completions");
            for queue in group.queues() {
                queue.take_completions(|_, result| {
                    assert_eq!(result, 0);
                    in_flight -= 1;
                    done += 1;
                });
            }
        }
    }
}

/// How long the thread called `name` has been on a CPU, in ns.
fn cpu_time(backend: &Backend, name: &str) -> u64 {
    let tasks = format!("/proc/{}/task", backend.pid());
    let tasks = std::fs::read_dir(tasks).expect("the program's threads");
    let directory = tasks
        .map(|task| task.expect("a thread").path())
        .find(|task| {
            let comm = std::fs::read_to_string(task.join("comm")).expect("its name");
            comm.trim_end() == name
        })
        .unwrap_or_else(|| panic!("no thread {name}"));
    let times = std::fs::read_to_string(directory.join("schedstat")).expect("its times");
    let on_cpu = times.split(' ').next().expect("three numbers");
    on_cpu.parse().expect("a number")
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn queue_i_is_processed_on_thread_i_modulo_n() {
    let (backend, mut client) = serve(&Program::under_test(), 4, 2);
    let threads = ["vu-blk-io0", "vu-blk-io1"];
    // Each of the four queues alone.
    for index in 0..4 {
        let before = threads.map(|name| cpu_time(&backend, name));
        read(&mut client.groups(4)[index], 20_000);
        let after = threads.map(|name| cpu_time(&backend, name));
        let spent = [after[0] - before[0], after[1] - before[1]];
        let (its, other) = (spent[index % 2], spent[1 - index % 2]);
        assert!(
            its > 10 * other,
            "queue {index}: {spent:?} ns on {threads:?}"
        );
    }
}

#[test]
#[ignore = "needs VU_BLK, see scripts/test"]
fn threads_with_queues_of_one_device_share_no_cache_line_that_either_writes() {
    let dir = TempDir::new();
    let (program, trace) = MemoryTrace::wrap(Program::under_test().path(), dir.path());
    let (backend, mut client) = serve(&Program::VuBlk(program), 2, 2);
    let mut groups = client.groups(2);
    let mut touched_by = |index: usize, requests: usize| {
        read(&mut groups[index], requests);
        trace.take(backend.pid())
    };
    // What is done once, at the first requests, is not what is looked for.
    for index in [0, 1] {
        touched_by(index, 320);
    }
    let [first, second] = [0, 1].map(|index| touched_by(index, 320));
    assert!(first.len() > 100 && second.len() > 100, "no trace");
    let shared: Vec<_> = first
        .iter()
        .filter_map(|(line, one)| second.get(line).map(|other| (line << 6, one, other)))
        .filter(|(_, one, other)| one.written_by.is_some() || other.written_by.is_some())
        .collect();
    assert!(shared.is_empty(), "{shared:#x?}");
}
