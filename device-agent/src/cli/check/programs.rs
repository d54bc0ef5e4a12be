//! What the operator of the device has run: whether it is there and may be run, before an update depends on it.

use super::Doctor;
use crate::apply::Whom;
use crate::cli::Exit;
use crate::config::Config;
use crate::probe::Question;
use crate::program::Program;

impl Doctor {
    pub(super) fn examine_programs(&mut self, config: &Config) {
        match &config.apply.whom {
            Whom::Program(program) | Whom::Unit(program) => self.examine_program("apply command", program),
            Whom::Nobody => {}
        }
        match &config.probe.question {
            Question::Program(program) => self.examine_program("probe command", program),
            Question::Http(_) | Question::Tcp(_) | Question::Nothing => {}
        }
    }

    fn examine_program(&mut self, check: &'static str, program: &Program) {
        match program.find() {
            Ok(()) => self.ok(check, program.path().display().to_string()),
            Err(error) => {
                self.fail(check, Exit::Failed, crate::error_chain(&error));
                self.remedy("install it and make it executable (chmod 755), or name another in agent.toml");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::cli::check::Outcome;
    use crate::config::Flags;

    #[test]
    fn finds_programs_that_are_not_there_or_may_not_be_run() {
        let directory = tempfile::tempdir().unwrap();
        let hook = directory.path().join("hook");
        std::fs::write(&hook, "#!/bin/sh\n").unwrap();
        let empty = directory.path().join("agent.toml");
        std::fs::write(&empty, "").unwrap();
        let examine = |apply: &str, probe: &str| {
            let settings = vec![("apply_command", apply.to_owned()), ("probe_command", probe.to_owned())];
            let config = Config::load(&Flags { file: Some(empty.clone()), settings }).unwrap();
            let mut doctor = Doctor { findings: Vec::new(), exit: Exit::Success };
            doctor.examine_programs(&config);
            let failed = doctor.findings.iter().filter(|finding| finding.outcome == Outcome::Failed);
            (doctor.exit, failed.map(|finding| (finding.check, finding.detail.clone())).collect::<Vec<_>>())
        };
        let mode = |mode| std::fs::set_permissions(&hook, PermissionsExt::from_mode(mode)).unwrap();
        let hook_path = hook.to_str().unwrap();
        mode(0o644);
        let (exit, failed) = examine(hook_path, "/no/such/probe");
        assert_eq!(exit, Exit::Failed);
        assert_eq!(
            failed.iter().map(|(check, _)| *check).collect::<Vec<_>>(),
            ["apply command", "probe command"]
        );
        assert!(failed[0].1.contains(hook_path) && failed[1].1.contains("/no/such/probe"), "{failed:?}");
        assert_eq!(
            examine(directory.path().to_str().unwrap(), hook_path).1.len(),
            2,
            "a directory is no program"
        );
        mode(0o755);
        assert_eq!(examine(hook_path, hook_path), (Exit::Success, vec![]));
    }
}
