//! The facade's images repository in the eyes of somebody else's client: python-tuf, which `tests/install` brings.

use std::path::Path;
use std::process::Command;

use harness::process::Outcome;
use harness::{Device, Facade, ImageBuilder, Pushed, Registry};

/// More than fit in one flat list, so that there are bins.
const ARTIFACTS: usize = 66;

struct Oracle<'a> {
    facade: &'a Facade,
    device: &'a Device,
}

impl Oracle<'_> {
    /// What python-tuf says of each name, as `NAME LENGTH SHA256` or `NAME none`.
    fn ask(&self, names: &[String]) -> Outcome {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python = here.join("../target/venv-tuf/bin/python");
        assert!(python.exists(), "{} is missing (tests/install python)", python.display());
        let identity = self.device.state_dir().join("identity");
        let root = self.facade.data_dir().join("tuf/images/1.root.json");
        let mut command = Command::new(python);
        command.arg(here.join("interop/facade_images.py")).arg(self.facade.device_url());
        Outcome::of(command.arg(identity).arg(root).args(names), b"")
    }

    fn finds(&self, names: &[String]) -> Vec<bool> {
        let said = self.ask(names).expect_success().stdout;
        let lines = names.iter().zip(said.lines());
        lines
            .map(|(name, line)| {
                assert!(line.starts_with(name.as_str()), "{line}");
                // What it names is what it says: the digest of the manifest.
                line.rsplit_once(' ').is_some_and(|(_, found)| name.ends_with(&format!("sha256:{found}")))
            })
            .collect()
    }
}

#[test]
fn python_tuf_takes_the_repository_of_a_running_facade_with_bins_and_publishers_and_new_roots() {
    let registry = Registry::open();
    let facade = Facade::start();
    facade.connect(&registry);
    let device = Device::enrolled("board-1", &facade);
    let oracle = Oracle { facade: &facade, device: &device };
    let push = |repository: &str, number: usize| {
        registry.push(repository, &format!("v{number}"), &ImageBuilder::new().random_layer(500).build())
    };
    let first = push("team/app", 0);
    facade.import(&first);
    let unknown = first.artifact().replace("team/app", "team/other");
    assert_eq!(oracle.finds(&[first.artifact(), unknown.clone()]), [true, false]);

    let more: Vec<Pushed> = (1..ARTIFACTS).map(|number| push("team/app", number)).collect();
    let mut args = vec!["import", first.repository.as_str()];
    args.extend(more.iter().map(|pushed| pushed.tag.as_str()));
    facade.ok(&args);
    let of_ci = push("team/ci", 0);
    facade.ok(&["keys", "delegate", "ci", "--repository", &of_ci.repository]);
    facade.import(&of_ci);
    for role in ["root", "targets", "snapshot", "timestamp"] {
        facade.ok(&["keys", "rotate", "images", role]);
    }
    let last = more.last().expect("pushed").artifact();
    let names = [first.artifact(), last, of_ci.artifact(), unknown];
    assert_eq!(oracle.finds(&names), [true, true, true, false]);
    let said = oracle.ask(&[]).expect_success().stdout;
    assert!(said.starts_with("versions 5 "), "{said}");

    facade.ok(&["artifact", "revoke", &first.artifact()]);
    assert_eq!(oracle.finds(&names), [false, true, true, false]);
}
