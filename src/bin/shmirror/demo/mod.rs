//! `shmirror demo`: one source, several destinations, each a process of its own; two kills; one verdict.

pub(crate) mod destination;
mod part;
mod scene;
pub(crate) mod source;
mod verdict;
mod view;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use part::{Failure, Order, Part, Said, monotonic_ns};
use scene::{Role, Scene};
use verdict::Verdict;
use view::View;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Items of the synthetic table, besides the kernel's own
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(0..=8_000_000))]
    items: u32,
    /// Changes of the synthetic table per second
    #[arg(long, default_value_t = 10_000)]
    rate: u32,
    /// Processes that hold a replica
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=32))]
    destinations: u8,
    /// How long it runs before everything is compared
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..=3600))]
    seconds: u16,
    /// Prints a line a second instead of a live view
    #[arg(long)]
    plain: bool,
    /// Prints nothing but one JSON object at the end
    #[arg(long)]
    json: bool,
    /// The name under which the source is found
    #[arg(long, default_value = "demo")]
    name: String,
    /// The directory of the source's socket [default: as of the library]
    #[arg(long)]
    runtime_dir: Option<PathBuf>,
}

/// How long any single step may take on a very busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often the view is drawn, and the scenario looked at.
const FRAME: Duration = Duration::from_millis(50);

pub(crate) fn run(options: &Options) -> Result<ExitCode, Failure> {
    let mut demo = Demo::start(options)?;
    demo.load()?;
    demo.play()?;
    let verdict = demo.compare()?;
    demo.end()?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&verdict)?);
    } else {
        print!("{verdict}");
    }
    Ok(if verdict.equal { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Demo<'a> {
    options: &'a Options,
    source: Part,
    destinations: Vec<Part>,
    scene: Scene,
    view: View,
    /// Which part has said what; parts are numbered in the order of their starts.
    heard: mpsc::Receiver<(usize, Said)>,
    said: mpsc::Sender<(usize, Said)>,
}

impl<'a> Demo<'a> {
    fn start(options: &'a Options) -> Result<Demo<'a>, Failure> {
        let (said, heard) = mpsc::channel();
        let mut scene = Scene::new(options.destinations.into(), Duration::from_secs(options.seconds.into()));
        let source = start_part(options, Role::Source, &mut scene, &said)?;
        let mut destinations = Vec::new();
        for n in 0..options.destinations.into() {
            destinations.push(start_part(options, Role::Destination(n), &mut scene, &said)?);
        }
        let view = View::new(options.plain, options.json);
        Ok(Demo { options, source, destinations, scene, view, heard, said })
    }

    /// Waits until the source is loaded; then the time begins.
    fn load(&mut self) -> Result<(), Failure> {
        self.wait("the source to load", |scene| scene.loaded)?;
        self.scene.begin();
        Ok(())
    }

    fn play(&mut self) -> Result<(), Failure> {
        let third = Duration::from_secs(self.options.seconds.into()) / 3;
        self.listen_for(third)?;
        self.kill_destination(0)?;
        self.listen_for(third * 2)?;
        self.kill_source()?;
        self.listen_for(third * 3)?;
        self.wait("everyone to be equal again", |scene| scene.is_recovered() && scene.is_all_synced())
    }

    fn kill_destination(&mut self, n: usize) -> Result<(), Failure> {
        let part = &mut self.destinations[n];
        let (pid, at_ns) = (part.pid(), monotonic_ns());
        part.kill()?;
        let back = start_part(self.options, Role::Destination(n), &mut self.scene, &self.said)?;
        self.scene.handle_kill(Role::Destination(n), pid, back.pid(), at_ns);
        self.destinations[n] = back;
        Ok(())
    }

    fn kill_source(&mut self) -> Result<(), Failure> {
        let (pid, at_ns) = (self.source.pid(), monotonic_ns());
        self.source.kill()?;
        let back = start_part(self.options, Role::Source, &mut self.scene, &self.said)?;
        self.scene.handle_kill(Role::Source, pid, back.pid(), at_ns);
        self.source = back;
        Ok(())
    }

    /// Stops the changes, has everyone list what it holds, and compares.
    fn compare(&mut self) -> Result<Verdict, Failure> {
        self.source.order(Order::Freeze);
        self.wait("the source to come to rest", |scene| scene.frozen.is_some())?;
        self.source.order(Order::List);
        self.destinations.iter_mut().for_each(|part| part.order(Order::List));
        self.wait("the listings", |scene| scene.is_all_listed())?;
        self.view.close()?;
        Ok(Verdict::new(&self.scene))
    }

    fn end(&mut self) -> Result<(), Failure> {
        for part in self.destinations.iter_mut().chain([&mut self.source]) {
            let pid = part.pid();
            if !part.quit(PATIENCE)? {
                return Err(format!("process {pid} did not end well").into());
            }
        }
        Ok(())
    }

    fn listen_for(&mut self, until: Duration) -> Result<(), Failure> {
        while self.scene.elapsed() < until {
            self.listen()?;
        }
        Ok(())
    }

    fn wait(&mut self, what: &str, done: impl Fn(&Scene) -> bool) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        while !done(&self.scene) {
            if Instant::now() >= deadline {
                return Err(format!("waited {} s for {what}", PATIENCE.as_secs()).into());
            }
            self.listen()?;
        }
        Ok(())
    }

    /// Takes in what was said within one frame, and draws it.
    fn listen(&mut self) -> Result<(), Failure> {
        let frame_ends = Instant::now() + FRAME;
        while let Ok((part, said)) =
            self.heard.recv_timeout(frame_ends.saturating_duration_since(Instant::now()))
        {
            self.scene.handle_said(part, said)?;
        }
        self.view.draw(&self.scene)?;
        Ok(())
    }
}

fn start_part(
    options: &Options,
    role: Role,
    scene: &mut Scene,
    said: &mpsc::Sender<(usize, Said)>,
) -> Result<Part, Failure> {
    let mut arguments = vec![match role {
        Role::Source => "demo-source".to_string(),
        Role::Destination(_) => "demo-destination".to_string(),
    }];
    arguments.push(format!("--name={}", options.name));
    if let Some(dir) = &options.runtime_dir {
        let dir = dir.to_str().ok_or("the runtime directory's path is not UTF-8")?;
        arguments.push(format!("--runtime-dir={dir}"));
    }
    let number = scene.next_part();
    if role == Role::Source {
        let life = scene.source_lives();
        let numbers = [("items", options.items), ("rate", options.rate), ("life", life)];
        arguments.extend(numbers.map(|(name, value)| format!("--{name}={value}")));
    }
    let part = Part::start(&arguments, number, said.clone())?;
    scene.handle_start(role, part.pid());
    Ok(part)
}
