//! The folder of the file store when things go wrong around it: no call fails while there is a
//! token in memory, what was stored stays readable, and the log says what to do.

use std::{
    fs::{self, File},
    io::Write as _,
    net::SocketAddr,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::Instant;
use wxgate::{
    internals::token::store::{StoreError, TokenStore as _},
    sandbox::{Sandbox, TokenFilter},
};

use crate::{
    node::process::{NOBODY, is_root, reachable_program},
    store_contract::{KEY, opened, sample, token_of},
    stores::restarts::file_until,
    support::{
        client,
        program::{Program, finish, folder, serve},
        setup,
        token_tools::said,
    },
};

/// Puts something in the place of a file.
type Put<'a> = &'a dyn Fn(&Path);

const USER: &str = "/cgi-bin/user/info?openid=a";

/// A test that this machine cannot run says so, so that nobody takes its silence for success.
fn skipped(what: &str) {
    eprintln!("SKIPPED: {what}");
}

/// A configuration, a fake WeChat, and the program on both.
struct Place {
    sandbox: Sandbox,
    folder: TempDir,
}

struct Serving<'p> {
    place: &'p Place,
    program: Program,
    proxy: SocketAddr,
}

impl Place {
    async fn new() -> Self {
        let setup = setup()
            .set("store", "kind = \"file\"")
            .set("store", "path = \"state\"");
        let sandbox = setup.start_sandbox().await;
        let folder = folder(&setup, &sandbox);
        Self { sandbox, folder }
    }

    fn record(&self) -> PathBuf {
        self.folder.path().join("state/shop.json")
    }

    fn start(&self, mut command: Command) -> Serving<'_> {
        let program = Program::start(&mut command);
        let proxy = program.proxy();
        Serving {
            place: self,
            program,
            proxy,
        }
    }

    /// `wxgate serve` behind another program that sets the scene for it.
    fn behind(&self, program: &str, arguments: &[&str]) -> Command {
        let inner = serve(self.folder.path());
        let mut command = Command::new(program);
        command
            .args(arguments)
            .arg(inner.get_program())
            .args(inner.get_args())
            .current_dir(self.folder.path());
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::null());
        command
    }

    /// As a user who may not write everywhere, whose folder the state is.
    fn as_nobody(&self, program: &TempDir) -> Command {
        fs::set_permissions(self.folder.path(), fs::Permissions::from_mode(0o755)).expect("mine");
        let state = self.folder.path().join("state");
        let _ = fs::create_dir(&state);
        fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).expect("mine");
        let mut command = self.behind(&program.path().join("wxgate").to_string_lossy(), &[]);
        let arguments: Vec<_> = command.get_args().skip(1).map(ToOwned::to_owned).collect();
        command = Command::new(program.path().join("wxgate"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear()
            .stdin(Stdio::null());
        if is_root() {
            chown(&state, Some(NOBODY), Some(NOBODY)).expect("root may");
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }
}

impl Serving<'_> {
    async fn is_fine(&self) {
        let answer = said(client().get(format!("http://{}{USER}", self.proxy))).await;
        assert!(answer.is_fine(), "{answer:?}\n{}", self.program.stderr());
    }

    /// The token dies; all calls are answered as if nothing had happened.
    async fn outlives_a_token(&self) {
        self.place.sandbox.control().revoke(TokenFilter::default());
        for _ in 0..10 {
            self.is_fine().await;
        }
    }

    /// What the log says of a write that failed.
    fn complains(&self, parts: &[&str]) {
        let line = self.program.logged("the token store cannot be written");
        for part in ["shop", "check space, permissions and mount options"]
            .iter()
            .chain(parts)
        {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }

    async fn store_errors(&self) -> String {
        let url = format!("http://{}/metrics", self.program.admin());
        let page = client()
            .get(url)
            .send()
            .await
            .expect("an answer")
            .text()
            .await
            .expect("text");
        page.lines()
            .filter(|line| line.starts_with("wxgate_store_errors_total{operation=\"save\"}"))
            .collect()
    }
}

/// Writes until nothing more fits.
fn fill(path: &Path) {
    let mut file = File::create(path).expect("there is room");
    while file.write_all(&[0; 512]).is_ok() {}
}

fn generation(number: u64) -> impl Fn(&[u8]) -> bool {
    move |bytes| {
        bytes.ends_with(b"}\n")
            && String::from_utf8_lossy(bytes).contains(&format!("\"generation\":{number},"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_costs_no_call_and_leaves_the_old_record() {
    let place = Place::new().await;
    let mount = "mkdir -p state && mount -t tmpfs -o size=64k,mode=0700 tmpfs state";
    if !Command::new("unshare")
        .args(["-m", "true"])
        .status()
        .is_ok_and(|status| status.success())
    {
        return skipped(
            "a full disk needs a mount namespace: run the tests as root, with unshare from util-linux",
        );
    }
    let serving = place.start(place.behind(
        "unshare",
        &["-m", "sh", "-c", &format!("{mount} && exec \"$0\" \"$@\"")],
    ));
    serving.is_fine().await;
    // What the process sees; from outside there is nothing but the folder.
    let seen = PathBuf::from(format!(
        "/proc/{}/root",
        serving.program.pid.as_raw_nonzero()
    ));
    let state = seen
        .join(place.folder.path().strip_prefix("/").expect("absolute"))
        .join("state");
    let first = file_until(&state.join("shop.json"), generation(1)).await;
    let filler = state.join("filler");
    fill(&filler);
    serving.outlives_a_token().await;
    serving.complains(&["No space left", "shop.json.new"]);
    assert_eq!(
        fs::read(state.join("shop.json")).expect("readable"),
        first,
        "the old record is untouched"
    );
    assert!(!serving.store_errors().await.is_empty());
    fs::remove_file(&filler).expect("removed");
    serving
        .program
        .logged("the token store can be written again");
    file_until(&state.join("shop.json"), generation(2)).await;
    assert_eq!(place.sandbox.control().fetches(), 2);
    assert_eq!(serving.program.stop().status, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_became_read_only_costs_no_call_and_is_used_again_later() {
    let (place, program) = (Place::new().await, reachable_program());
    let serving = place.start(place.as_nobody(&program));
    serving.is_fine().await;
    let first = file_until(&place.record(), generation(1)).await;
    let state = place.folder.path().join("state");
    fs::set_permissions(&state, fs::Permissions::from_mode(0o500)).expect("mine");
    serving.outlives_a_token().await;
    serving.complains(&["Permission denied"]);
    assert_eq!(fs::read(place.record()).expect("readable"), first);
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).expect("mine");
    serving
        .program
        .logged("the token store can be written again");
    file_until(&place.record(), generation(2)).await;
    assert_eq!(place.sandbox.control().fetches(), 2);
}

/// Left behind by a start as root: it must not keep the service from its own folder for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_belongs_to_somebody_else_is_set_aside() {
    if !is_root() {
        return skipped("files of other users need root");
    }
    let (place, program) = (Place::new().await, reachable_program());
    let command = place.as_nobody(&program);
    fs::write(place.record(), "secret of root").expect("written");
    fs::set_permissions(place.record(), fs::Permissions::from_mode(0o600)).expect("mine");
    let serving = place.start(command);
    serving.is_fine().await;
    let line = serving.program.logged("was set aside");
    assert!(
        line.contains("Permission denied") && line.contains("shop.json.damaged"),
        "{line}"
    );
    file_until(&place.record(), generation(1)).await;
    assert_eq!(fs::metadata(place.record()).expect("there").uid(), NOBODY);

    // One that can be read, of a user who is neither this one, nor root, nor the owner of the
    // folder.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let open = || opened(folder.path(), None);
    open()
        .save(&token_of("shop"), sample(3, Some("a")))
        .await
        .expect("written");
    let record = folder.path().join("shop.json");
    chown(&record, Some(12345), None).expect("root may");
    assert_eq!(open().load(&token_of("shop")).await, Ok(None));
    assert!(
        fs::symlink_metadata(&record).is_err() && folder.path().join("shop.json.damaged").exists()
    );
    open()
        .save(&token_of("shop"), sample(1, Some("b")))
        .await
        .expect("written");
    chown(folder.path(), Some(12345), None).expect("root may");
    chown(&record, Some(12345), None).expect("root may");
    assert_eq!(
        open().load(&token_of("shop")).await,
        Ok(Some(sample(1, Some("b")))),
        "root in a service's folder"
    );
}

/// What a curious hand puts in the place of a record while wxgate runs: the next write puts it
/// aside.
#[tokio::test(flavor = "multi_thread")]
async fn odd_things_in_the_place_of_a_record_cost_no_call_and_go_away() {
    let place = Place::new().await;
    let serving = place.start(serve(place.folder.path()));
    serving.is_fine().await;
    file_until(&place.record(), generation(1)).await;
    let elsewhere = place.folder.path().join("elsewhere");
    fs::write(&elsewhere, "untouched").expect("written");
    let odd: [(&str, Put<'_>); 3] = [
        ("link", &|path| symlink(&elsewhere, path).expect("made")),
        ("pipe", &|path| {
            let status = Command::new("mkfifo")
                .arg(path)
                .status()
                .expect("mkfifo runs");
            assert!(status.success());
        }),
        ("folder", &|path| fs::create_dir(path).expect("made")),
    ];
    for (number, (what, make)) in (2..).zip(odd) {
        fs::remove_file(place.record()).expect("it was a file");
        make(&place.record());
        serving.outlives_a_token().await;
        let waiting = Instant::now();
        loop {
            let is_file =
                fs::symlink_metadata(place.record()).is_ok_and(|metadata| metadata.is_file());
            if is_file && generation(number)(&fs::read(place.record()).unwrap_or_default()) {
                break;
            }
            assert!(
                waiting.elapsed() < Duration::from_secs(30),
                "{what}: {}",
                serving.program.stderr()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    assert_eq!(fs::read(&elsewhere).expect("readable"), b"untouched");
    serving
        .program
        .logged("a stored token record is not usable and was set aside");
    let aside = |name: &str| place.folder.path().join("state").join(name);
    assert!(
        aside("shop.json.damaged").is_symlink() && aside("shop.json.damaged.3").is_dir(),
        "put aside, not deleted"
    );
    assert_eq!(place.sandbox.control().fetches(), 4);
}

/// What cannot be a folder for one process is refused at the start, by its name.
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_be_used_stops_the_start_and_the_key_is_named() {
    let place = Place::new().await;
    let state = place.folder.path().join("state");
    let lock = state.join("lock");
    let odd: [(&str, &dyn Fn()); 5] = [
        ("file", &|| fs::write(&state, "").expect("written")),
        ("link to nowhere", &|| {
            symlink("nowhere/at/all", &state).expect("made")
        }),
        ("folder as lock", &|| {
            fs::create_dir_all(&lock).expect("made")
        }),
        ("link as lock", &|| {
            fs::create_dir(&state).expect("made");
            symlink("/dev/null", &lock).expect("made");
        }),
        ("open to everybody", &|| {
            fs::create_dir(&state).expect("made");
            fs::set_permissions(&state, fs::Permissions::from_mode(0o777)).expect("mine");
        }),
    ];
    for (what, make) in odd {
        make();
        let ended = finish(serve(place.folder.path()));
        assert_eq!(ended.status, Some(1), "{what}: {}", ended.stderr);
        assert!(
            ended.stderr.contains("store.path") && ended.stderr.contains("state"),
            "{what}: {}",
            ended.stderr
        );
        let _ = fs::remove_file(&state);
        let _ = fs::remove_dir_all(&state);
    }
    assert_eq!(place.sandbox.control().fetches(), 0, "no token was spent");
}

fn has_strace() -> bool {
    let works = Command::new("strace")
        .args(["-qq", "-o", "/dev/null", "true"])
        .status()
        .is_ok_and(|s| s.success());
    if !works {
        skipped(
            "faults of fsync and rename need strace (Debian: apt-get install strace) and leave to trace",
        );
    }
    works
}

/// The process that makes system calls fail. Without it they work again.
fn tracer(program: &Program) -> Pid {
    let status = fs::read_to_string(format!("/proc/{}/status", program.pid.as_raw_nonzero()))
        .expect("it runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"))
        .expect("Linux tells");
    Pid::from_raw(line.trim().parse().expect("a number")).expect("it is traced")
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_fail_on_the_way_to_the_disk_cost_no_call_and_are_made_up_for() {
    if !has_strace() {
        return;
    }
    for (call, advice) in [
        ("fsync", "Input/output error"),
        ("?rename,?renameat,?renameat2", "cannot replace"),
    ] {
        let place = Place::new().await;
        let inject = format!("inject={call}:error=EIO");
        // The tracer is a grandchild, so that signals reach the program itself, and ends when it is
        // told to.
        let command = place.behind(
            "strace",
            &[
                "-D",
                "-I",
                "1",
                "-f",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                &inject,
            ],
        );
        let serving = place.start(command);
        serving.is_fine().await;
        serving.complains(&["Input/output error", advice]);
        serving.outlives_a_token().await;
        assert_eq!(place.sandbox.control().fetches(), 2, "{call}");
        kill_process(tracer(&serving.program), Signal::TERM).expect("it is there");
        serving
            .program
            .logged("the token store can be written again");
        file_until(&place.record(), generation(2)).await;
        assert_eq!(serving.program.stop().status, Some(0));
        let again = place.start(serve(place.folder.path()));
        again.is_fine().await;
        assert_eq!(
            place.sandbox.control().fetches(),
            2,
            "{call}: what was made up for is there"
        );
    }
}

/// A rename before the bytes are on the disk leaves an empty file after a power cut; one that is
/// never synced, the old.
#[tokio::test(flavor = "multi_thread")]
async fn every_write_syncs_the_file_renames_it_and_syncs_the_folder_in_this_order() {
    if !has_strace() {
        return;
    }
    let place = Place::new().await;
    let log = place.folder.path().join("calls");
    let calls = "trace=fsync,?rename,?renameat,?renameat2";
    let log_name = log.to_string_lossy().into_owned();
    let serving = place.start(place.behind(
        "strace",
        &["-D", "-f", "-y", "-qq", "-o", &log_name, "-e", calls],
    ));
    serving.is_fine().await;
    file_until(&place.record(), generation(1)).await;
    serving.outlives_a_token().await;
    file_until(&place.record(), generation(2)).await;
    assert_eq!(serving.program.stop().status, Some(0));
    let written = fs::read_to_string(&log).expect("readable");
    let is_new =
        |line: &str| line.contains("shop.json.new") || line.contains("shop.phantoms.json.new");
    let steps: Vec<_> = written
        .lines()
        .filter(|line| line.contains("state"))
        .map(|line| match line {
            line if line.contains("rename") && is_new(line) => "rename",
            line if line.contains("fsync") && is_new(line) => "sync the file",
            line if line.contains("fsync") && line.contains("/state>") => "sync the folder",
            other => panic!("{other}"),
        })
        .collect();
    assert!(steps.len() >= 6, "{written}");
    for write in steps.chunks(3) {
        assert_eq!(
            write,
            ["sync the file", "rename", "sync the folder"],
            "{written}"
        );
    }
}

/// Not a test: what `a_process_that_is_killed_while_it_saves_…` runs and kills.
#[tokio::test]
#[ignore = "runs until it is killed"]
async fn saves_until_it_is_killed() {
    let folder = std::env::var_os("WXGATE_TEST_FOLDER").expect("the test that starts this sets it");
    let store = opened(Path::new(&folder), Some(KEY));
    let first = store
        .load(&token_of("shop"))
        .await
        .expect("readable")
        .map_or(0, |record| record.generation.0);
    for generation in first + 1.. {
        let record = sample(generation, Some(&format!("token-{generation}")));
        store
            .save(&token_of("shop"), record)
            .await
            .expect("written");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_while_it_saves_leaves_a_record_200_times_of_200() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let record = folder.path().join("shop.json");
    let mut last = 0;
    for round in 0..200_u64 {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args([
                "stores::store_files::saves_until_it_is_killed",
                "--exact",
                "--ignored",
                "--nocapture",
            ])
            .env("WXGATE_TEST_FOLDER", folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let before = fs::read(&record).unwrap_or_default();
        file_until(&record, |bytes| !bytes.is_empty() && bytes != before).await;
        // Another moment of a write each time.
        std::thread::sleep(Duration::from_micros(round * 37 % 1500));
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        let store = opened(folder.path(), Some(KEY));
        let read = store
            .load(&token_of("shop"))
            .await
            .expect("readable")
            .expect("a record");
        assert!(
            read.generation.0 > last,
            "round {round}: {} after {last}",
            read.generation.0
        );
        last = read.generation.0;
        assert_eq!(read, sample(last, Some(&format!("token-{last}"))));
    }
    let names = fs::read_dir(folder.path())
        .expect("readable")
        .flatten()
        .map(|entry| entry.file_name());
    assert!(
        !names
            .into_iter()
            .any(|name| name.to_string_lossy().contains("damaged")),
        "none was unreadable"
    );
    eprintln!("killed 200 times in {last} writes: 200 of 200 readable");
}

/// As for plain files in the store's own tests: whatever happens to the bytes, no other token comes
/// out of them.
#[tokio::test]
async fn every_cut_and_every_flipped_byte_of_a_sealed_file_gives_no_token() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let record = folder.path().join("shop.json");
    let open = || opened(folder.path(), Some(KEY));
    open()
        .save(&token_of("shop"), sample(1, Some("81_abc")))
        .await
        .expect("written");
    let good = fs::read(&record).expect("readable");
    let cuts = (0..good.len()).map(|end| good[..end].to_vec());
    let flips = (0..good.len()).flat_map(|at| {
        let good = &good;
        [0x01, 0x20, 0xff].into_iter().map(move |bits| {
            let mut bad = good.clone();
            bad[at] ^= bits;
            bad
        })
    });
    for bad in cuts.chain(flips) {
        let _ = fs::remove_file(folder.path().join("shop.json.damaged"));
        fs::write(&record, &bad).expect("written");
        let read = open().load(&token_of("shop")).await;
        assert!(
            matches!(read, Ok(None) | Err(StoreError::Sealed(_))),
            "{read:?} of {}",
            String::from_utf8_lossy(&bad)
        );
    }
    fs::write(&record, &good).expect("written");
    assert_eq!(
        open().load(&token_of("shop")).await,
        Ok(Some(sample(1, Some("81_abc"))))
    );
}
