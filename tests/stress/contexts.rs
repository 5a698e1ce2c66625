//! The four contexts, each of which can be freed and replaced while the others go on.

use std::sync::{RwLock, RwLockReadGuard};
use std::thread;
use std::time::{Duration, Instant};

use vu_server::Context;

use crate::move_loops::{Kind, Looper, Watches};
use crate::move_pool::Random;
use crate::nest;

const BUSY: Duration = Duration::from_micros(50);
/// How long a context may stay in use that everything was asked to leave.
const LIMIT: Duration = Duration::from_secs(40);

pub struct Contexts(RwLock<Vec<Numbered>>);

/// A looper, and the number under which callbacks know its loop.
pub struct Numbered {
    pub looper: Looper,
    number: u64,
}

fn start(kind: Kind) -> Numbered {
    let looper = Looper::start(kind);
    let number = nest::enable(&looper, kind);
    Numbered { looper, number }
}

impl Contexts {
    pub fn start() -> Self {
        let kinds = [
            Kind::Foreign,
            Kind::Epoll,
            Kind::Polled,
            Kind::BusyPoll(BUSY),
        ];
        Contexts(RwLock::new(kinds.map(start).into_iter().collect()))
    }

    /// The contexts stay as they are while this is held.
    pub fn all(&self) -> RwLockReadGuard<'_, Vec<Numbered>> {
        self.0.read().unwrap()
    }

    /// Replaces one by another of its kind. `leave` asks everything to move from the one to the others;
    /// `meanwhile` is called while that is not done.
    pub fn replace(&self, random: &mut Random, leave: impl Fn(&[Numbered]), meanwhile: impl Fn()) {
        let mut loopers = self.0.write().unwrap();
        let index = random.below(loopers.len() as u64) as usize;
        let Numbered { looper, number } = loopers.remove(index);
        let kind = looper.kind();
        let runs_meanwhile = random.below(2) == 0;
        if runs_meanwhile {
            leave(&loopers);
        }
        let (ctx, watches) = looper.end();
        // The calling thread takes the place of the one that has ended.
        nest::adopt(number);
        if let Some(watches) = &watches {
            watches.adopt();
        }
        ctx.adopt().unwrap();
        if !runs_meanwhile {
            leave(&loopers);
        }
        free(ctx, kind, watches.as_deref(), meanwhile);
        loopers.push(start(kind));
    }

    /// Ends all of them; nothing may be attached any more.
    pub fn end(&self) {
        for numbered in self.0.write().unwrap().drain(..) {
            let (ctx, watches) = numbered.looper.end();
            if let Some(watches) = &watches {
                watches.adopt();
            }
            ctx.free().expect("nothing is attached");
        }
    }
}

/// Runs the context until nothing is attached to it any more, then frees it.
fn free(mut ctx: Context, kind: Kind, watches: Option<&Watches>, meanwhile: impl Fn()) {
    let deadline = Instant::now() + LIMIT;
    while let Err((error, back)) = ctx.free() {
        assert_eq!(error.errno(), libc::EBUSY, "{error}");
        assert!(Instant::now() < deadline, "{kind:?}: still in use");
        ctx = back;
        match (kind, watches) {
            (_, Some(watches)) => watches.iterate(None, 0),
            (Kind::Polled, _) => drop(ctx.poll().unwrap()),
            _ => drop(ctx.dispatch(Some(Duration::ZERO)).unwrap()),
        }
        meanwhile();
        thread::yield_now();
    }
}
