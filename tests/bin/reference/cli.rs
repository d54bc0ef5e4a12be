//! A command line as a page: every verb with its arguments.

use std::fmt::Write as _;

use clap::{Arg, Command};

use super::cell;

/// The page of a program.
pub(crate) fn page(mut command: Command) -> String {
    command.build();
    let name = command.get_name().to_owned();
    let mut text = format!("# {name}\n\n{}\n", about(&command));
    let globals: Vec<&Arg> = command.get_arguments().filter(|argument| argument.is_global_set()).collect();
    text.push_str("\n## For every verb\n");
    arguments(&mut text, globals.into_iter());
    verbs(&mut text, &command, &name);
    if let Some(after) = command.get_after_help() {
        let _ = write!(text, "\n## Examples and exit codes\n\n```text\n{}\n```\n", after.to_string().trim());
    }
    text
}

fn verbs(text: &mut String, command: &Command, path: &str) {
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set() && verb.get_name() != "help") {
        let path = format!("{path} {}", verb.get_name());
        if verb.has_subcommands() {
            verbs(text, verb, &path);
            continue;
        }
        let _ = write!(text, "\n## `{path}`\n\n{}\n", about(verb));
        let usage = verb.clone().render_usage().to_string();
        let _ = write!(text, "\n```text\n{}\n```\n", usage.trim_start_matches("Usage: ").trim());
        let own =
            verb.get_arguments().filter(|argument| !argument.is_global_set() && argument.get_id() != "help");
        arguments(text, own);
        if let Some(after) = verb.get_after_help() {
            let _ = write!(text, "\n```text\n{}\n```\n", after.to_string().trim());
        }
    }
}

fn about(command: &Command) -> String {
    let about = command.get_long_about().or_else(|| command.get_about());
    about.map(ToString::to_string).unwrap_or_default()
}

fn arguments<'a>(text: &mut String, arguments: impl Iterator<Item = &'a Arg>) {
    let rows: Vec<String> = arguments.filter(|argument| !argument.is_hide_set()).map(row).collect();
    if !rows.is_empty() {
        let _ = write!(text, "\n| argument | what it says |\n| --- | --- |\n{}\n", rows.join("\n"));
    }
}

fn row(argument: &Arg) -> String {
    let help = argument.get_long_help().or_else(|| argument.get_help());
    let mut help = help.map(ToString::to_string).unwrap_or_default();
    let values: Vec<String> =
        argument.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
    if !values.is_empty() && argument.get_action().takes_values() {
        let _ = write!(help, " ({})", values.join(", "));
    }
    let defaults: Vec<_> =
        argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if !defaults.is_empty() && argument.get_action().takes_values() {
        let _ = write!(help, " Default: `{}`.", defaults.join(" "));
    }
    if let Some(variable) = argument.get_env() {
        let _ = write!(help, " Environment: `{}`.", variable.to_string_lossy());
    }
    format!("| `{}` | {} |", spelling(argument).replace('|', "\\|"), cell(&help))
}

/// How it is typed: `-o, --output FORMAT`, `TAG…`.
fn spelling(argument: &Arg) -> String {
    let names = argument.get_value_names().unwrap_or_default();
    let value = names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let many = if argument.get_num_args().is_some_and(|range| range.max_values() > 1) { "…" } else { "" };
    let short = argument.get_short().map(|short| format!("-{short}, ")).unwrap_or_default();
    match argument.get_long() {
        Some(long) if argument.get_action().takes_values() => format!("{short}--{long} {value}{many}"),
        Some(long) => format!("{short}--{long}"),
        None => format!("{value}{many}"),
    }
}
