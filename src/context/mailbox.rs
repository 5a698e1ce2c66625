//! A context's mailbox and the protocol of its doorbell.
//!
//! Mail is a hint ("look at this queue's owner word"), so the same letter is never in the box twice and the
//! box is bounded by the number of queues and servers there are. (A channel cannot look for a letter's double, which
//! is why this is a locked queue.)
//!
//! Senders skip the doorbell while the receiver is awake, that is inside the library's own dispatch code.
//! The receiver goes to sleep in three steps: store ASLEEP, SeqCst fence, look into the box again. A sender
//! pushes, SeqCst fence, reads the state. One of the two always sees the other: either the receiver finds
//! the letter or the sender finds it asleep and rings.

use std::collections::VecDeque;

use crate::sync::{AtomicBool, AtomicU32, Mutex, Ordering, fence};

const ASLEEP: u32 = 0;
const AWAKE: u32 = 1;
/// Asleep, and somebody has rung already: one write to the doorbell is enough.
const RUNG: u32 = 2;

/// Letters are compared to keep the box free of doubles.
#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    letters: Mutex<VecDeque<T>>,
    /// There are letters. Changes under their lock, and spares who only asks the lock.
    filled: AtomicBool,
    state: AtomicU32,
}

impl<T: PartialEq> Mailbox<T> {
    /// Asleep and empty.
    pub(crate) fn new() -> Self {
        Mailbox {
            letters: Mutex::new(VecDeque::new()),
            filled: AtomicBool::new(false),
            state: AtomicU32::new(ASLEEP),
        }
    }

    /// Any thread. True if the caller must ring the doorbell.
    #[must_use]
    pub(crate) fn push(&self, letter: T) -> bool {
        {
            let mut letters = self.letters.lock();
            if !letters.contains(&letter) {
                letters.push_back(letter);
                // Relaxed: the fences of `needs_ring` and `sleep` order it.
                self.filled.store(true, Ordering::Relaxed);
            }
        }
        self.needs_ring()
    }

    /// Any thread, after it made something visible that the receiver must look at.
    #[must_use]
    pub(crate) fn needs_ring(&self) -> bool {
        // Pairs with the fence of `sleep`.
        fence(Ordering::SeqCst);
        // Relaxed: only who rings is decided here; the letters travel under their lock.
        self.state.load(Ordering::Relaxed) == ASLEEP
            && self
                .state
                .compare_exchange(ASLEEP, RUNG, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// The receiver: in the library's code from here on.
    pub(crate) fn wake_up(&self) {
        self.state.store(AWAKE, Ordering::Relaxed);
    }

    /// The receiver: leaves the library's code, for its loop or for a callback. True if there is mail, and
    /// then a receiver that goes back to its loop must look at it first.
    #[must_use]
    pub(crate) fn sleep(&self) -> bool {
        self.state.store(ASLEEP, Ordering::Relaxed);
        // Pairs with the fence of `needs_ring`.
        fence(Ordering::SeqCst);
        !self.is_empty()
    }

    /// A receiver without a doorbell, which stays ASLEEP and asks instead: one relaxed load while nobody has
    /// posted anything.
    #[must_use]
    pub(crate) fn answer(&self) -> bool {
        if self.state.load(Ordering::Relaxed) != RUNG {
            return false;
        }
        // Before the box is opened, whose lock orders the two: a sender that comes after it sees this.
        self.state.store(ASLEEP, Ordering::Relaxed);
        true
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.filled.load(Ordering::Relaxed)
    }

    /// How many letters there are now: the receiver takes as many, so that those which arrive meanwhile do not
    /// keep it for ever.
    pub(crate) fn len(&self) -> usize {
        self.letters.lock().len()
    }

    /// The oldest letter. The others stay in the box for a loop that nests while it is dealt with.
    pub(crate) fn take(&self) -> Option<T> {
        let mut letters = self.letters.lock();
        let letter = letters.pop_front();
        if letters.is_empty() {
            self.filled.store(false, Ordering::Relaxed);
        }
        letter
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn take_all(mailbox: &Mailbox<u32>) -> Vec<u32> {
        std::iter::from_fn(|| mailbox.take()).collect()
    }

    #[test]
    fn doubles_are_dropped_and_one_sender_rings() {
        let mailbox = Mailbox::new();
        assert!(mailbox.push(1));
        assert!(!mailbox.push(1), "rung already");
        assert!(!mailbox.push(2));
        mailbox.wake_up();
        assert_eq!(mailbox.len(), 2);
        assert_eq!(take_all(&mailbox), [1, 2]);
        assert!(!mailbox.push(3), "awake");
        assert!(mailbox.sleep(), "mail is seen before sleeping");
        assert_eq!(take_all(&mailbox), [3]);
        assert!(!mailbox.sleep());
        assert!(mailbox.push(4));
        assert!(mailbox.answer() && !mailbox.answer());
        assert_eq!(take_all(&mailbox), [4]);
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::{Arc, AtomicBool};
    use loom::thread;

    /// A letter is never left in the box of a sleeping receiver whose doorbell is silent.
    #[test]
    fn no_letter_is_lost() {
        loom::model(|| {
            let shared = Arc::new((Mailbox::new(), AtomicBool::new(false)));
            shared.0.wake_up();
            let senders: Vec<_> = (0..2)
                .map(|letter| {
                    let shared = shared.clone();
                    thread::spawn(move || {
                        if shared.0.push(letter) {
                            shared.1.store(true, Ordering::Release);
                        }
                    })
                })
                .collect();
            let mut seen = 0;
            loop {
                while shared.0.take().is_some() {
                    seen += 1;
                }
                if !shared.0.sleep() {
                    break;
                }
                shared.0.wake_up();
            }
            for sender in senders {
                sender.join().unwrap();
            }
            let rung = shared.1.load(Ordering::Acquire);
            assert!(
                seen == 2 || rung,
                "a letter waits for a doorbell that nobody rang"
            );
            assert_eq!(seen + shared.0.len(), 2);
        });
    }

    /// A receiver that asks gets every letter, the ones that arrive while it reads with its next question.
    #[test]
    fn a_receiver_that_asks_gets_every_letter() {
        loom::model(|| {
            let mailbox = Arc::new(Mailbox::new());
            let senders: Vec<_> = (0..2)
                .map(|letter| {
                    let mailbox = mailbox.clone();
                    thread::spawn(move || {
                        let _ = mailbox.push(letter);
                    })
                })
                .collect();
            let mut seen = 0;
            let mut ask = || {
                if mailbox.answer() {
                    for _ in 0..mailbox.len() {
                        seen += usize::from(mailbox.take().is_some());
                    }
                }
            };
            ask();
            for sender in senders {
                sender.join().unwrap();
            }
            ask();
            assert_eq!(seen, 2);
        });
    }
}
