//! Notices that one of the parties has stopped, and says what everything is doing.

use std::fmt;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::plan::say;

/// How long one step of anybody may take.
const LIMIT: Duration = Duration::from_secs(50);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// The steps of a party that is through.
const DONE: u64 = u64::MAX;

/// Of one party: its steps, and what it is doing.
pub struct Beat {
    name: String,
    steps: AtomicU64,
    doing: Mutex<String>,
}

impl Beat {
    pub fn new(name: impl Into<String>) -> Arc<Self> {
        Arc::new(Beat {
            name: name.into(),
            steps: AtomicU64::new(0),
            doing: Mutex::new("starting".into()),
        })
    }

    pub fn step(&self) {
        // Relaxed: only whether it changes counts.
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    pub fn begin(&self, what: &str) {
        self.step();
        let mut doing = self.doing.lock().unwrap();
        doing.clear();
        doing.push_str(what);
    }

    /// It is through and needs no watching.
    pub fn end(&self) {
        self.steps.store(DONE, Ordering::Relaxed);
        *self.doing.lock().unwrap() = "done".into();
    }

    fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }
}

/// What there is to say about a hang.
struct Diagnosis {
    beats: Vec<Arc<Beat>>,
    describe: Box<dyn Fn() -> String + Send + Sync>,
}

/// Aborts the process with a diagnosis when a beat stops.
pub struct Watchdog {
    diagnosis: Arc<Diagnosis>,
    cancel: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    pub fn start(
        beats: Vec<Arc<Beat>>,
        describe: impl Fn() -> String + Send + Sync + 'static,
    ) -> Self {
        let diagnosis = Arc::new(Diagnosis {
            beats,
            describe: Box::new(describe),
        });
        let (cancel, cancelled) = channel();
        let watched = diagnosis.clone();
        Watchdog {
            diagnosis,
            cancel: Some(cancel),
            thread: Some(thread::spawn(move || watched.watch(&cancelled))),
        }
    }

    /// Says what everything is doing.
    pub fn report(&self) {
        say(&self.diagnosis.to_string());
    }
}

impl Diagnosis {
    fn watch(&self, cancelled: &Receiver<()>) {
        let now = |beat: &Arc<Beat>| (beat.steps(), Instant::now());
        let mut seen: Vec<_> = self.beats.iter().map(now).collect();
        while cancelled.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            for (beat, seen) in self.beats.iter().zip(&mut seen) {
                let steps = beat.steps();
                if steps != seen.0 || steps == DONE {
                    *seen = now(beat);
                } else if seen.1.elapsed() > LIMIT {
                    say(&format!("stress: {} hangs\n{self}", beat.name));
                    std::process::abort();
                }
            }
        }
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for beat in &self.beats {
            let doing = beat.doing.try_lock().map_or("?".into(), |d| d.clone());
            writeln!(f, "  {}: step {}, {doing}", beat.name, beat.steps())?;
        }
        writeln!(f, "  {}", (self.describe)())?;
        for task in fs::read_dir("/proc/self/task")
            .into_iter()
            .flatten()
            .flatten()
        {
            let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
            let (name, call, place) = (read("comm"), read("syscall"), read("wchan"));
            let (name, call) = (name.trim_end(), call.trim_end());
            writeln!(f, "  {:?} {name}: {place}, {call}", task.file_name())?;
        }
        Ok(())
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.cancel.take());
        if let Some(thread) = self.thread.take() {
            // It cannot have panicked but over a broken test, which says so itself.
            let _ = thread.join();
        }
    }
}
