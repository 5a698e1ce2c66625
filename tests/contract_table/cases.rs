//! How the Rust API calls what each row of the table names.

use std::os::fd::AsFd;
use std::time::Duration;

use vu_server::{Address, Context, Result, Server, ShmemMapping, Virtqueue};

use crate::scene::{Column, Scene, Silent, Still};
use crate::stop::socket_path;

type Call = fn(&Scene) -> Result<()>;
type Lent = fn(&Scene, &mut Virtqueue<'_>) -> Result<()>;

/// What a row is in Rust.
#[derive(Clone, Copy)]
pub enum How {
    /// Called wherever the program is.
    Plain(Call),
    /// Called where the program likes, on an element that was popped.
    Element(Call),
    /// On a queue that is lent to a callback: nobody else has one to call it on.
    Lent(Lent),
    /// Takes what it ends, which a callback of its own cannot have.
    Takes(Call),
    /// Nothing that could be called wrongly; why.
    None(#[expect(dead_code, reason = "for the reader")] &'static str),
}

#[derive(Clone, Copy)]
pub struct Case {
    pub how: How,
    /// On another thread it waits for the loop, which must run.
    pub waits: bool,
    /// Takes the scene to an end: called in `kick` only.
    pub ends: bool,
    /// Answers ESHUTDOWN where a drain is over, or the server stopped.
    pub drains: bool,
}

const fn how(how: How) -> Case {
    Case {
        how,
        waits: false,
        ends: false,
        drains: false,
    }
}

const fn plain(call: Call) -> Case {
    how(How::Plain(call))
}

const fn element(call: Call) -> Case {
    how(How::Element(call))
}

const fn lent(call: Lent) -> Case {
    how(How::Lent(call))
}

const fn none(why: &'static str) -> Case {
    how(How::None(why))
}

const A_DROP: &str = "dropping it";
const A_CONSTANT: &str = "a constant of the crate";
const A_VALUE: &str = "a value of its own, with nothing of the library behind it";

/// A row that is not here is a function that nobody has thought about from Rust.
pub fn case(function: &str) -> Case {
    CASES
        .iter()
        .find(|(name, _)| *name == function)
        .unwrap_or_else(|| panic!("vu_{function} has a row in the header and no case here"))
        .1
}

const CASES: &[(&str, Case)] = &[
    (
        "ctx_new",
        plain(|_| Context::foreign(Box::new(Still::default())).map(drop)),
    ),
    ("ctx_new_epoll", plain(|_| Context::epoll().map(drop))),
    ("ctx_new_polled", plain(|_| Context::polled().map(drop))),
    (
        "ctx_free",
        how(How::Takes(|s| {
            s.take_spare_ctx().free().map_err(|(error, _)| error)
        })),
    ),
    ("ctx_adopt", plain(|s| s.ctx.adopt())),
    ("ctx_fd", plain(|s| s.ctx.fd().map(drop))),
    (
        "ctx_dispatch",
        plain(|s| s.ctx.dispatch(Some(Duration::ZERO)).map(drop)),
    ),
    (
        "ctx_run",
        plain(|s| {
            s.ctx.quit();
            s.ctx.run()
        }),
    ),
    (
        "ctx_quit",
        plain(|s| {
            s.ctx.quit();
            Ok(())
        }),
    ),
    (
        "ctx_set_busy_poll",
        plain(|s| s.ctx.set_busy_poll(Duration::from_micros(1))),
    ),
    ("ctx_poll", plain(|s| s.polled.poll().map(drop))),
    (
        "ctx_watch",
        plain(|s| {
            let result = s.watch();
            s.unwatch()?;
            result
        }),
    ),
    (
        "ctx_unwatch",
        plain(|s| {
            s.watch()?;
            s.unwatch()
        }),
    ),
    ("ctx_flush", plain(|s| s.ctx.flush())),
    (
        "watch_poll",
        plain(|s| {
            s.doorbell().has_work();
            Ok(())
        }),
    ),
    (
        "server_new",
        plain(|_| Server::builder().build(Silent).map(drop)),
    ),
    (
        "server_start",
        plain(|s| {
            let address = Address::Listen(socket_path("table"));
            match s.column {
                Column::Callback => s.server.start(address, None),
                _ => s.with_spare(|spare| spare.start(address, None)),
            }
        }),
    ),
    (
        "server_stop",
        Case {
            waits: true,
            ..plain(|s| s.server.stop())
        },
    ),
    (
        "server_request_stop",
        Case {
            ends: true,
            ..plain(|s| s.server.request_stop())
        },
    ),
    (
        "server_is_stopped",
        plain(|s| {
            s.server.is_stopped();
            Ok(())
        }),
    ),
    (
        "server_free",
        how(How::Takes(|s| {
            s.take_spare().free().map_err(|(error, _)| error)
        })),
    ),
    (
        "server_attach_ctx",
        Case {
            drains: true,
            ..plain(|s| {
                if s.column != Column::Detached {
                    s.server.request_detach()?;
                }
                s.server.attach(&s.ctx)
            })
        },
    ),
    ("server_detach_ctx", plain(|s| s.server.detach())),
    (
        "server_request_detach",
        Case {
            ends: true,
            ..plain(|s| s.server.request_detach())
        },
    ),
    (
        "server_attach_vq_ctx",
        Case {
            drains: true,
            ..plain(|s| s.server.attach_queue(0, Some(&s.ctx)))
        },
    ),
    (
        "server_is_quiesced",
        plain(|s| {
            s.server.is_quiesced();
            Ok(())
        }),
    ),
    (
        "server_has_inflight",
        plain(|s| {
            s.server.has_inflight();
            Ok(())
        }),
    ),
    (
        "server_inflight_inc",
        Case {
            drains: true,
            ..plain(inflight)
        },
    ),
    (
        "server_inflight_dec",
        Case {
            drains: true,
            ..plain(inflight)
        },
    ),
    ("server_set_config", plain(|s| s.server.set_config(0, b"a"))),
    ("server_get_config", plain(|s| s.server.config(0, &mut [0]))),
    (
        "server_object_add",
        plain(|s| unheard(NO_CHANNEL, s.server.object_add(UUID, drop))),
    ),
    (
        "server_object_remove",
        plain(|s| unheard(NO_CHANNEL, s.server.object_remove(UUID, drop))),
    ),
    (
        "server_object_lookup",
        plain(|s| unheard(NO_CHANNEL, s.server.object_lookup(UUID, drop))),
    ),
    // There is no region to map anything in.
    (
        "server_shmem_map",
        plain(|s| {
            let stdin = std::io::stdin();
            unheard(
                &[libc::EINVAL],
                s.server.shmem_map(MAPPING, stdin.as_fd(), drop),
            )
        }),
    ),
    (
        "server_shmem_unmap",
        plain(|s| unheard(&[libc::EINVAL], s.server.shmem_unmap(MAPPING, drop))),
    ),
    (
        "server_host_notifier",
        plain(|s| unheard(NO_CHANNEL, s.server.set_host_notifier(0, None, drop))),
    ),
    (
        "server_features",
        plain(|s| {
            s.server.features();
            Ok(())
        }),
    ),
    ("server_vq", none("queues are lent to callbacks")),
    (
        "server_get_stats",
        plain(|s| {
            assert_ne!(s.server.stats().connections, 0);
            Ok(())
        }),
    ),
    ("vq_get_stats", plain(|s| s.server.queue_stats(0).map(drop))),
    (
        "vq_pop",
        lent(|_, vq| {
            let popped = vq.pop_one()?.expect("a request");
            vq.unpop(popped).map_err(|(error, _)| error)
        }),
    ),
    (
        "vq_unpop",
        lent(|_, vq| {
            let popped = vq.pop_one()?.expect("a request");
            vq.unpop(popped).map_err(|(error, _)| error)
        }),
    ),
    // Outside of callbacks it is the context's.
    ("vq_stage", element(|s| s.ctx.stage(s.take_element(), 0))),
    (
        "vq_flush",
        lent(|_, vq| {
            vq.flush();
            Ok(())
        }),
    ),
    (
        "vq_index",
        lent(|_, vq| {
            assert_eq!(vq.index(), 0);
            Ok(())
        }),
    ),
    (
        "vq_size",
        lent(|_, vq| {
            assert_ne!(vq.size(), 0);
            Ok(())
        }),
    ),
    ("vq_server", none("a device knows its server")),
    (
        "vq_enabled",
        lent(|_, vq| {
            assert!(vq.is_enabled());
            Ok(())
        }),
    ),
    (
        "vq_big_endian",
        lent(|_, vq| {
            assert!(!vq.is_big_endian());
            Ok(())
        }),
    ),
    ("vq_set_data", none("a device has fields")),
    ("vq_data", none("a device has fields")),
    (
        "vq_inflight_inc",
        none("an element or the server's count does it"),
    ),
    (
        "vq_inflight_dec",
        none("an element or the server's count does it"),
    ),
    ("elem_complete", element(|s| s.take_element().complete(0))),
    (
        "elem_suspend",
        element(|s| {
            // The front-end here does not take requests over; that it is asked for is legal.
            let (error, _) = s.take_element().suspend().unwrap_err();
            assert_eq!(error.errno(), libc::ENOTSUP, "{error}");
            Ok(())
        }),
    ),
    (
        "elem_read",
        element(|s| {
            let element = s.take_element();
            assert_ne!(element.read(0, &mut [0; 4]), 0);
            Ok(())
        }),
    ),
    (
        "elem_write",
        element(|s| {
            let element = s.take_element();
            assert_ne!(element.write(0, &[1]), 0);
            Ok(())
        }),
    ),
    (
        "elem_iov_slice",
        element(|s| {
            let element = s.take_element();
            assert!(element.writable().all(|slice| !slice.is_empty()));
            Ok(())
        }),
    ),
    ("elem_mark_dirty", none("not offered from Rust")),
    ("elem_vq", none("an element is completed without its queue")),
    ("error_code", none(A_VALUE)),
    ("error_message", none(A_VALUE)),
    ("error_free", none(A_DROP)),
    ("version", none(A_CONSTANT)),
    ("version_string", none(A_CONSTANT)),
];

const UUID: [u8; 16] = [7; 16];

const MAPPING: ShmemMapping = ShmemMapping {
    region: 0,
    offset: 0,
    len: 4096,
    fd_offset: 0,
    writable: false,
};

/// What requests to the front-end answer: in some scenes it has negotiated what they need, in none it has given a channel.
const NO_CHANNEL: &[i32] = &[libc::ENOTCONN, libc::ENOTSUP];

/// Found out at once.
#[track_caller]
fn unheard(errors: &[i32], result: Result<()>) -> Result<()> {
    let error = result.unwrap_err();
    assert!(errors.contains(&error.errno()), "{error}");
    Ok(())
}

fn inflight(s: &Scene) -> Result<()> {
    s.server.inflight_inc()?;
    s.server.inflight_dec()
}
