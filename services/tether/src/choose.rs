//! `tether choose`: from what workers are to outlive to a configuration.

mod files;
mod tree;

use std::{
    fs::{self, File},
    io::{self, BufRead as _, Write as _},
    path::Path,
};

use anyhow::Context as _;
use tree::Question;

use crate::cli::choose::{Answers, Choose};

/// Asks, explains and writes.
pub(crate) fn choose(args: Choose) -> anyhow::Result<()> {
    let mut answers = given(args.answers, args.file.as_deref())?;
    tree::check(&answers).map_err(anyhow::Error::msg)?;
    let choice = loop {
        match tree::next(&answers) {
            Ok(choice) => break choice,
            Err(question) => ask(question, &mut answers)?,
        }
    };
    say(&choice.explain())?;
    if args.dry_run {
        return Ok(());
    }
    write(&args.dir, &files::files(&choice), args.force)
}

/// The flags', and of a file what they leave open.
fn given(flags: Answers, file: Option<&Path>) -> anyhow::Result<Answers> {
    let Some(path) = file else { return Ok(flags) };
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read the answers in `{}`", path.display()))?;
    let said: Answers = toml::from_str(&text)
        .with_context(|| format!("`{}` has no answers as they are asked for", path.display()))?;
    Ok(Answers {
        outlive_crash: flags.outlive_crash.or(said.outlive_crash),
        outlive_restart: flags.outlive_restart.or(said.outlive_restart),
        outlive_node: flags.outlive_node.or(said.outlive_node),
        place: flags.place.or(said.place),
        store: flags.store.or(said.store),
        owner: flags.owner.or(said.owner),
    })
}

/// Asks until there is an answer.
fn ask(question: Question, answers: &mut Answers) -> anyhow::Result<()> {
    say(question.text())?;
    for line in io::stdin().lock().lines() {
        match question.take(answers, line?.trim()) {
            Ok(()) => return Ok(()),
            Err(why) => say(&why)?,
        }
    }
    anyhow::bail!("nobody answers: give `{}`", question.flag())
}

/// Writes all files or none.
fn write(dir: &Path, files: &[files::File], force: bool) -> anyhow::Result<()> {
    let there = files.iter().map(|(name, _)| dir.join(name));
    if let Some(path) = there.into_iter().find(|path| path.exists() && !force) {
        anyhow::bail!(
            "`{}` is there already, and nothing was written: give `--force` to write over it, or another `--dir`",
            path.display()
        );
    }
    fs::create_dir_all(dir).with_context(|| format!("cannot make `{}`", dir.display()))?;
    for (name, text) in files {
        let path = dir.join(name);
        // Between the look above and here somebody may have made it.
        let opened = File::options()
            .write(true)
            .create(force)
            .truncate(force)
            .create_new(!force)
            .open(&path);
        opened
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| format!("cannot write `{}`", path.display()))?;
        say(&format!("wrote {}", path.display()))?;
    }
    Ok(())
}

fn say(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout(), "{text}")?)
}
