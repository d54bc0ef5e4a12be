//! An identity provider that is not ours (oidc-provider-mock), and a browser that signs in with it, without a browser.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::http::{self, Response};
use crate::process::{Process, free_port, setting};

/// A running provider.
pub struct IdentityProvider {
    _process: Process,
    directory: TempDir,
    authority: String,
}

impl IdentityProvider {
    /// Starts one that knows people by these claims; each has a `sub`.
    pub fn start(people: &[Value]) -> Self {
        let installed =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/venv-oidc/bin/oidc-provider-mock");
        let program = setting("DRAYAGE_TEST_OIDC").unwrap_or_else(|| installed.into());
        let directory = TempDir::new().expect("make a directory");
        let port = free_port();
        let mut command = Command::new(program);
        command.args(["--port", &port.to_string(), "--require-nonce", "true"]);
        for claims in people {
            command.args(["--user-claims", &claims.to_string()]);
        }
        let log = directory.path().join("log");
        let mut process = Process::start("oidc-provider-mock (tests/install oidc)", &mut command, &log);
        let authority = format!("127.0.0.1:{port}");
        process.wait_until_ready(|| TcpStream::connect(&authority).is_ok());
        std::fs::write(directory.path().join("secret"), "a secret & more\n").expect("write the secret");
        Self { _process: process, directory, authority }
    }

    /// What it calls itself.
    pub fn issuer(&self) -> String {
        format!("http://{}", self.authority)
    }

    /// The file with the secret that its clients have; it takes any.
    pub fn secret_file(&self) -> String {
        self.directory.path().join("secret").display().to_string()
    }

    /// Signs somebody in at the address to which they were sent; gives where they are sent back to.
    pub fn sign_in(&self, there: &str, subject: &str) -> String {
        let path = there.strip_prefix(&self.issuer()).expect("an address of the provider");
        let form = [("Content-Type", "application/x-www-form-urlencoded")];
        let answer = http::request(&self.authority, "POST", path, &form, format!("sub={subject}").as_bytes());
        location(&answer.expect("ask the provider"))
    }
}

/// Where an answer sends to.
pub fn location(answer: &Response) -> String {
    let location = answer.headers.get("location");
    location.unwrap_or_else(|| panic!("no redirect, but {} {}", answer.status, answer.text())).to_owned()
}

/// A browser as far as a console without scripts needs one: it keeps cookies.
#[derive(Default)]
pub struct Browser {
    authority: String,
    cookies: Vec<(String, String)>,
}

impl Browser {
    /// One that visits an operator door.
    pub fn at(authority: String) -> Self {
        Self { authority, cookies: Vec::new() }
    }

    /// Loads a page.
    pub fn get(&mut self, path: &str) -> Response {
        self.ask("GET", path, "")
    }

    /// Sends a form of a page.
    pub fn post(&mut self, path: &str, form: &str) -> Response {
        self.ask("POST", path, form)
    }

    /// The token that protects the forms of a page.
    pub fn csrf(&mut self, path: &str) -> String {
        let text = self.get(path).text();
        let found = text.split_once("name=\"csrf\" value=\"").and_then(|(_, rest)| rest.split_once('"'));
        found.unwrap_or_else(|| panic!("no form in {text}")).0.to_owned()
    }

    /// Forgets every cookie.
    pub fn forget(&mut self) {
        self.cookies.clear();
    }

    fn ask(&mut self, method: &str, path: &str, form: &str) -> Response {
        let cookies: Vec<String> =
            self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let (cookies, origin) = (cookies.join("; "), format!("http://{}", self.authority));
        let headers = [
            ("Cookie", cookies.as_str()),
            ("Origin", origin.as_str()),
            ("Content-Type", "application/x-www-form-urlencoded"),
        ];
        let answer =
            http::request(&self.authority, method, path, &headers, form.as_bytes()).expect("ask the console");
        for (_, value) in answer.headers.0.iter().filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie"))
        {
            let pair = value.split(';').next().and_then(|pair| pair.split_once('='));
            let (name, value) = pair.expect("a cookie");
            self.cookies.retain(|(known, _)| known != name);
            if !value.is_empty() {
                self.cookies.push((name.to_owned(), value.to_owned()));
            }
        }
        answer
    }
}
