//! Servers by name, as an operator with several facades has them.

use harness::Facade;
use harness::process::{Outcome, command};
use tempfile::TempDir;

/// An operator's home directory with profiles in it.
struct Home(TempDir);

impl Home {
    fn with(profiles: &str) -> Self {
        let home = TempDir::new().expect("make a directory");
        let directory = home.path().join(".config/drayage");
        std::fs::create_dir_all(&directory).expect("make a directory");
        std::fs::write(directory.join("config.toml"), profiles).expect("write the profiles");
        Self(home)
    }

    fn run(&self, args: &[&str], environment: &[(&str, &str)]) -> Outcome {
        let mut facade = command("facade");
        facade.env("HOME", self.0.path()).envs(environment.iter().copied());
        Outcome::of(facade.args(args).args(["--output", "json"]), b"")
    }
}

#[test]
fn a_profile_stands_for_a_server_and_its_token() {
    let facade = Facade::start();
    let home = Home::with(&format!(
        "[profiles.shop]\nserver = \"http://{}\"\ntoken_file = \"{}\"\n",
        facade.operator_authority(),
        facade.admin_token_file().display()
    ));
    home.run(&["--profile", "shop", "device", "list"], &[]).expect_success();
    home.run(&["device", "list"], &[("FACADE_PROFILE", "shop")]).expect_success();
    let mistyped = home.run(&["--profile", "shpo", "device", "list"], &[]).expect_code(2);
    assert!(mistyped.stderr.contains("did you mean \"shop\"?"), "{}", mistyped.stderr);
    // Without a name and without a default there is no token to show anybody.
    home.run(&["device", "list"], &[]).expect_code(5);
}
