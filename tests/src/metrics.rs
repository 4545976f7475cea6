//! What a service answers to a reader of metrics, as Prometheus takes it.
//!
//! Keeps: nothing.
//! Order: none.
//! Crash: nothing.
//! Knows the text form, and is stricter than a reader has to be.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::cluster::{SOON, Service};
use crate::{edit, own_address};

/// A service's endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Metrics(SocketAddr);

/// A page.
#[derive(Debug, Default)]
pub struct Read {
    /// Name and kind of each metric, in order.
    pub families: Vec<(String, String)>,
    /// Each number by what is before it: name and labels.
    pub numbers: BTreeMap<String, f64>,
}

impl Metrics {
    /// Has a service tell its metrics from its next start on.
    ///
    /// # Errors
    /// No port is free, or the settings cannot be changed.
    pub fn switch_on(run_dir: &Path, service: Service) -> Result<Self> {
        let address = TcpListener::bind((own_address(), 0))?.local_addr()?;
        edit::set(run_dir, service.name(), "metrics.listen", address.to_string())?;
        Ok(Self(address))
    }

    /// The page as it is now.
    ///
    /// # Errors
    /// There is no answer, or it is not of the form.
    pub fn read(self) -> Result<Read> {
        let text = self.text()?;
        Read::parse(&text).with_context(|| text)
    }

    /// One number of it; none where there is no line of it, or nobody answers.
    #[must_use]
    pub fn number(self, name: &str) -> Option<f64> {
        self.read().ok()?.numbers.get(name).copied()
    }

    fn text(self) -> Result<String> {
        let mut stream = TcpStream::connect(self.0)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, page) = answer
            .split_once("\r\n\r\n")
            .context("an answer without a head")?;
        ensure!(head.starts_with("HTTP/1.0 200"), "{head}");
        Ok(page.to_owned())
    }
}

impl Read {
    fn parse(text: &str) -> Result<Self> {
        let mut read = Self::default();
        let mut helped = "";
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                helped = help.split_once(' ').context("help without words")?.0;
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').context("a type without one")?;
                ensure!(name == helped, "{name} has no help");
                ensure!(
                    read.families.iter().all(|(known, _)| known != name),
                    "{name} is told twice"
                );
                read.families.push((name.to_owned(), kind.to_owned()));
            } else {
                read.take(line)?;
            }
        }
        Ok(read)
    }

    fn take(&mut self, line: &str) -> Result<()> {
        let (name, value) = line.rsplit_once(' ').context("a line without a number")?;
        let (family, kind) = self.families.last().context("a number before its type")?;
        let suffix = name
            .split('{')
            .next()
            .and_then(|name| name.strip_prefix(family.as_str()));
        let suffix = suffix.with_context(|| format!("{line} is among those of {family}"))?;
        let is_known = match kind.as_str() {
            "histogram" => ["_bucket", "_sum", "_count"].contains(&suffix),
            _ => suffix.is_empty(),
        };
        ensure!(is_known, "{line} is no number of a {kind}");
        let value: f64 = value.parse().with_context(|| line.to_owned())?;
        ensure!(
            self.numbers.insert(name.to_owned(), value).is_none(),
            "{name} is there twice"
        );
        Ok(())
    }
}
