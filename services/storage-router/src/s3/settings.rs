//! The section `s3` of a back end's settings.
//!
//! Keeps: what a person typed, checked, with all that was left out filled in.
//! Order: none.
//! Crash: nothing; settings are only read.
//! Knows no secrets: they are in the environment or in a file of their own, never here.

use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;
use sconce_runtime::settings::{ByteSize, Interval};
use sconce_schemas::records::S3Place;
use serde::Deserialize;

use super::credentials::Credentials;

/// A bucket, or a folder in one, as a back end.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Typed")]
pub struct S3Settings {
    /// The bucket; it has to be there.
    pub bucket: String,
    /// `http://host:port` or `https://host:port`.
    pub endpoint: String,
    /// The region that requests are signed for.
    pub region: String,
    /// What all keys begin with: empty, or a path that ends in a slash.
    pub folder: String,
    /// Where the bucket's name is in a request.
    pub style: Style,
    /// Certificates that the server's has to be signed by, in place of those that the machine trusts.
    pub ca: Option<PathBuf>,
    /// Where the access key comes from.
    pub credentials: Credentials,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long a request may take, beside a second for each MiB that it moves.
    pub request_timeout: Duration,
    /// Objects of more stored bytes are uploaded in parts.
    pub multipart_above: u64,
}

/// Where the bucket's name is in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Style {
    /// `https://endpoint/bucket/key`: what most servers take.
    Path,
    /// `https://bucket.endpoint/key`: what AWS wants.
    VirtualHosted,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Typed {
    bucket: String,
    endpoint: Option<String>,
    region: Option<String>,
    #[serde(default)]
    folder: String,
    style: Option<Style>,
    ca: Option<PathBuf>,
    credentials: Option<Source>,
    credentials_file: Option<PathBuf>,
    profile: Option<String>,
    metadata_endpoint: Option<String>,
    #[serde(default = "connect_timeout")]
    connect_timeout: Interval,
    #[serde(default = "request_timeout")]
    request_timeout: Interval,
    #[serde(default = "multipart_above")]
    multipart_above: ByteSize,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Source {
    Environment,
    File,
    InstanceProfile,
}

fn connect_timeout() -> Interval {
    Interval::new(Duration::from_secs(3))
}

fn request_timeout() -> Interval {
    Interval::new(Duration::from_secs(8))
}

/// Well above the default SCO: one request is faster, and atomic on more servers.
fn multipart_above() -> ByteSize {
    ByteSize::new(16 << 20)
}

impl S3Settings {
    /// The bucket's URL: what a key is appended to.
    #[must_use]
    pub fn bucket_url(&self) -> String {
        let Self { bucket, endpoint, .. } = self;
        match (self.style, endpoint.split_once("://")) {
            (Style::VirtualHosted, Some((scheme, host))) => format!("{scheme}://{bucket}.{host}"),
            _ => format!("{endpoint}/{bucket}"),
        }
    }

    /// Whether requests are encrypted on their way.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.endpoint.starts_with("https://")
    }
}

impl TryFrom<S3Place> for S3Settings {
    type Error = String;

    /// As if it had been typed into the settings.
    fn try_from(place: S3Place) -> Result<Self, String> {
        let credentials = match place.credentials.as_deref() {
            None => None,
            Some("environment") => Some(Source::Environment),
            Some("file") => Some(Source::File),
            Some("instance-profile") => Some(Source::InstanceProfile),
            Some(other) => {
                return Err(format!(
                    "credentials = {other:?}; right would be environment, file or instance-profile"
                ));
            }
        };
        let style = match place.style.as_deref() {
            None => None,
            Some("path") => Some(Style::Path),
            Some("virtual-hosted") => Some(Style::VirtualHosted),
            Some(other) => {
                return Err(format!(
                    "style = {other:?}; right would be path or virtual-hosted"
                ));
            }
        };
        Self::try_from(Typed {
            bucket: place.bucket,
            endpoint: place.endpoint,
            region: place.region,
            folder: place.folder,
            style,
            ca: place.ca.map(PathBuf::from),
            credentials,
            credentials_file: place.credentials_file.map(PathBuf::from),
            profile: place.profile,
            metadata_endpoint: None,
            connect_timeout: connect_timeout(),
            request_timeout: request_timeout(),
            multipart_above: multipart_above(),
        })
    }
}

impl TryFrom<Typed> for S3Settings {
    type Error = String;

    fn try_from(typed: Typed) -> Result<Self, String> {
        let credentials = credentials(&typed)?;
        let region = typed.region.unwrap_or_else(|| "us-east-1".to_owned());
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if region.is_empty() || !region.chars().all(is_plain) {
            return Err(format!(
                "region = {region:?}; right would be a name of letters, digits and -, such as \"eu-west-1\""
            ));
        }
        let style = typed.style.unwrap_or(match typed.endpoint {
            None => Style::VirtualHosted,
            Some(_) => Style::Path,
        });
        let endpoint = match typed.endpoint {
            None => format!("https://s3.{region}.amazonaws.com"),
            Some(endpoint) => checked_endpoint(&endpoint)?,
        };
        check_bucket(&typed.bucket)?;
        for (key, value) in [
            ("connect_timeout", typed.connect_timeout),
            ("request_timeout", typed.request_timeout),
        ] {
            if value.duration() < Duration::from_millis(100) {
                return Err(format!("{key} = \"{value}\"; right would be 100ms or more"));
            }
        }
        // S3 takes no part below 5 MiB but the last, and no single put above 5 GiB.
        if !((5 << 20)..=(5 << 30)).contains(&typed.multipart_above.bytes()) {
            return Err(format!(
                "multipart_above = \"{}\"; right would be 5 MiB to 5 GiB",
                typed.multipart_above
            ));
        }
        Ok(Self {
            bucket: typed.bucket,
            endpoint,
            region,
            folder: checked_folder(&typed.folder)?,
            style,
            ca: typed.ca,
            credentials,
            connect_timeout: typed.connect_timeout.duration(),
            request_timeout: typed.request_timeout.duration(),
            multipart_above: typed.multipart_above.bytes(),
        })
    }
}

fn credentials(typed: &Typed) -> Result<Credentials, String> {
    let source = typed.credentials.unwrap_or(match typed.credentials_file {
        Some(_) => Source::File,
        None => Source::Environment,
    });
    let only_with = |key: &str, is_there: bool, right: &str| match is_there {
        true => Err(format!(
            "{key} is there; right would be credentials = \"{right}\" with it"
        )),
        false => Ok(()),
    };
    if source != Source::File {
        only_with("credentials_file", typed.credentials_file.is_some(), "file")?;
        only_with("profile", typed.profile.is_some(), "file")?;
    }
    if source != Source::InstanceProfile {
        only_with(
            "metadata_endpoint",
            typed.metadata_endpoint.is_some(),
            "instance-profile",
        )?;
    }
    match source {
        Source::Environment => Ok(Credentials::Environment),
        Source::InstanceProfile => Ok(Credentials::InstanceProfile {
            endpoint: typed
                .metadata_endpoint
                .as_deref()
                .map(checked_endpoint)
                .transpose()?,
        }),
        Source::File => Ok(Credentials::File {
            path: typed.credentials_file.clone().ok_or(
                "credentials = \"file\" without credentials_file; right would be the path of such a file",
            )?,
            profile: typed.profile.clone().unwrap_or_else(|| "default".to_owned()),
        }),
    }
}

fn checked_endpoint(endpoint: &str) -> Result<String, String> {
    const RIGHT: &str = "right would be http://host:port or https://host:port, with nothing behind it";
    if endpoint.contains('@') {
        // Not shown: what is before the @ may be a password.
        return Err(format!("endpoint holds a user or a password; {RIGHT}"));
    }
    let trimmed = endpoint.trim_end_matches('/');
    let uri: Uri = trimmed
        .parse()
        .map_err(|error| format!("endpoint = {endpoint:?}: {error}; {RIGHT}"))?;
    let is_right = matches!(uri.scheme_str(), Some("http" | "https"))
        && uri.host().is_some_and(|host| !host.is_empty())
        && uri.path() == "/"
        && uri.query().is_none();
    if is_right {
        Ok(trimmed.to_owned())
    } else {
        Err(format!("endpoint = {endpoint:?}; {RIGHT}"))
    }
}

fn check_bucket(bucket: &str) -> Result<(), String> {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    let ends_well = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let is_right = (3..=63).contains(&bucket.len())
        && bucket.chars().all(is_plain)
        && ends_well(bucket.chars().next())
        && ends_well(bucket.chars().last());
    if is_right {
        return Ok(());
    }
    Err(format!(
        "bucket = {bucket:?}; right would be 3 to 63 of `a-z 0-9 - .`, a letter or a digit at both ends"
    ))
}

/// The folder with one slash at its end, or nothing.
fn checked_folder(folder: &str) -> Result<String, String> {
    let trimmed = folder.trim_matches('/');
    if trimmed.is_empty() {
        return Ok(String::new());
    }
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let is_part = |part: &str| !matches!(part, "" | "." | "..") && part.chars().all(is_plain);
    if trimmed.len() <= 512 && trimmed.split('/').all(is_part) {
        return Ok(format!("{trimmed}/"));
    }
    Err(format!(
        "folder = {folder:?}; right would be names of `A-Z a-z 0-9 - . _` with one / between them, 512 bytes in all"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<S3Settings, String> {
        toml_of(text).map_err(|error| error.to_string())
    }

    fn toml_of(text: &str) -> Result<S3Settings, sconce_runtime::settings::SettingsError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s3.toml");
        std::fs::write(&path, text).unwrap();
        sconce_runtime::settings::load(&path)
    }

    #[test]
    fn what_is_left_out_is_what_aws_wants() {
        let settings = parse("bucket = \"vms\"\nregion = \"eu-west-1\"\n").unwrap();
        assert_eq!(settings.bucket_url(), "https://vms.s3.eu-west-1.amazonaws.com");
        assert_eq!(settings.credentials, Credentials::Environment);
        assert!(settings.is_tls() && settings.folder.is_empty());
        assert_eq!(settings.multipart_above, 16 << 20);
    }

    #[test]
    fn an_endpoint_of_ones_own_is_asked_in_path_style_unless_told() {
        let text = "bucket = \"vms\"\nendpoint = \"http://10.0.0.1:9000/\"\nfolder = \"/a/b/\"\n";
        let settings = parse(text).unwrap();
        assert_eq!(settings.bucket_url(), "http://10.0.0.1:9000/vms");
        assert_eq!(
            (settings.folder.as_str(), settings.region.as_str()),
            ("a/b/", "us-east-1")
        );
        let hosted = parse(&format!("{text}style = \"virtual-hosted\"\n")).unwrap();
        assert_eq!(hosted.bucket_url(), "http://vms.10.0.0.1:9000");
    }

    #[test]
    fn each_source_of_the_key_is_taken() {
        let parse = |more: &str| parse(&format!("bucket = \"vms\"\n{more}")).unwrap().credentials;
        let file = |profile: &str| Credentials::File {
            path: "/k".into(),
            profile: profile.to_owned(),
        };
        assert_eq!(parse("credentials_file = \"/k\"\n"), file("default"));
        assert_eq!(
            parse("credentials = \"file\"\ncredentials_file = \"/k\"\nprofile = \"p\"\n"),
            file("p")
        );
        let endpoint = Some("http://127.0.0.1:1".to_owned());
        assert_eq!(
            parse("credentials = \"instance-profile\"\nmetadata_endpoint = \"http://127.0.0.1:1\"\n"),
            Credentials::InstanceProfile { endpoint }
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_what_is_right() {
        for (wrong, wanted) in [
            ("bucket = \"VMs\"", vec!["bucket = \"VMs\"", "3 to 63"]),
            ("bucket = \"-vms\"", vec!["both ends"]),
            (
                "bucket = \"vms\"\nendpoint = \"10.0.0.1:9000\"",
                vec!["endpoint = \"10.0.0.1:9000\"", "http://host"],
            ),
            (
                "bucket = \"vms\"\nendpoint = \"http://h/x\"",
                vec!["nothing behind it"],
            ),
            (
                "bucket = \"vms\"\nendpoint = \"ftp://h\"",
                vec!["ftp://h", "https://host:port"],
            ),
            (
                "bucket = \"vms\"\nregion = \"\"",
                vec!["region = \"\"", "eu-west-1"],
            ),
            (
                "bucket = \"vms\"\nfolder = \"a//b\"",
                vec!["folder = \"a//b\"", "one /"],
            ),
            ("bucket = \"vms\"\nfolder = \"../b\"", vec!["folder"]),
            (
                "bucket = \"vms\"\nstyle = \"dns\"",
                vec!["dns", "`path`", "`virtual-hosted`"],
            ),
            (
                "bucket = \"vms\"\ncredentials = \"file\"",
                vec!["credentials_file"],
            ),
            (
                "bucket = \"vms\"\nprofile = \"p\"",
                vec!["profile", "credentials = \"file\""],
            ),
            (
                "bucket = \"vms\"\nmetadata_endpoint = \"http://h\"",
                vec!["instance-profile"],
            ),
            (
                "bucket = \"vms\"\nmultipart_above = \"1 MiB\"",
                vec!["multipart_above", "5 MiB to 5 GiB"],
            ),
            (
                "bucket = \"vms\"\nrequest_timeout = \"1ms\"",
                vec!["request_timeout = \"1ms\"", "100ms"],
            ),
            ("bucket = \"vms\"\nsecret = \"x\"", vec!["secret", "line 2"]),
            ("region = \"x\"", vec!["missing field `bucket`"]),
        ] {
            let error = parse(wrong).unwrap_err();
            for part in wanted {
                assert!(error.contains(part), "{part:?} is not in {error}");
            }
        }
    }
}
