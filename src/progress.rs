//! A progress bar, if there is a terminal to show it on and it takes long enough.

#[cfg(feature = "progress")]
mod bar {
    use indicatif::{ProgressBar, ProgressStyle};
    use std::{
        io::IsTerminal,
        time::{Duration, Instant},
    };

    /// What ends sooner shows no bar.
    const PATIENCE: Duration = Duration::from_secs(1);

    pub(crate) struct Progress {
        started: Instant,
        label: Option<String>,
        total: Option<usize>,
        bar: Option<ProgressBar>,
    }

    impl Progress {
        pub(crate) fn new(label: Option<&str>, total: Option<usize>) -> Self {
            let label = label.filter(|_| std::io::stderr().is_terminal()).map(str::to_owned);
            Progress { started: Instant::now(), label, total, bar: None }
        }

        /// So many are done.
        pub(crate) fn set(&mut self, done: usize) {
            let Some(label) = &self.label else { return };
            if self.bar.is_none() && self.started.elapsed() > PATIENCE {
                let (bar, template) = match self.total {
                    Some(total) => {
                        (ProgressBar::new(total as u64), "{msg} {wide_bar} {pos}/{len} {elapsed}, {eta} left")
                    }
                    None => (ProgressBar::new_spinner(), "{msg} {spinner} {pos} {elapsed}"),
                };
                let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
                self.bar = Some(bar.with_style(style).with_message(label.clone()).with_elapsed(self.started.elapsed()));
            }
            if let Some(bar) = &self.bar {
                bar.set_position(done as u64);
            }
        }
    }

    impl Drop for Progress {
        fn drop(&mut self) {
            if let Some(bar) = &self.bar {
                bar.finish_and_clear();
            }
        }
    }
}

#[cfg(not(feature = "progress"))]
mod bar {
    pub(crate) struct Progress;

    impl Progress {
        pub(crate) fn new(_label: Option<&str>, _total: Option<usize>) -> Self {
            Progress
        }

        pub(crate) fn set(&mut self, _done: usize) {}
    }
}

pub(crate) use bar::Progress;
