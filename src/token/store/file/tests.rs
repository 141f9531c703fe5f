//! File store on a real file system.

use std::{
    fs::File,
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        net::UnixListener,
    },
};

use super::{super::record::tests::sample, *};
use crate::base::AccountName;

fn name() -> RecordKey {
    RecordKey::token(&AccountName::new("shop").unwrap())
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

struct Place {
    _temporary: tempfile::TempDir,
    folder: PathBuf,
}

impl Place {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("state");
        Self {
            _temporary: temporary,
            folder,
        }
    }

    fn file(&self, suffix: &str) -> PathBuf {
        self.folder.join(format!("shop.json{suffix}"))
    }

    fn open(&self) -> FileStore {
        FileStore::open(&self.folder, None).unwrap()
    }

    async fn save(&self, generation: u64, token: &str) -> Saved {
        self.open()
            .save(&name(), sample(generation, Some(token)))
            .await
            .unwrap()
    }

    async fn load(&self) -> Option<TokenRecord> {
        self.open().load(&name()).await.unwrap()
    }
}

#[tokio::test]
async fn what_is_saved_is_there_after_a_restart_for_its_owner_only() {
    let place = Place::new();
    assert_eq!(place.load().await, None);
    assert_eq!(place.save(1, "a").await, Saved::Written);
    assert_eq!(place.save(2, "b").await, Saved::Written);
    assert_eq!(place.load().await, Some(sample(2, Some("b"))));
    assert_eq!(
        (
            mode(&place.folder),
            mode(&place.file("")),
            mode(&place.file(".bak"))
        ),
        (0o700, 0o600, 0o600)
    );
    assert_eq!(codec_of(&place.file(".bak")), Some(sample(1, Some("a"))));
}

type Make = fn(&Path, &Path);

fn codec_of(path: &Path) -> Option<TokenRecord> {
    Codec::default()
        .decode(&name(), &fs::read(path).unwrap())
        .ok()
        .map(|read| read.record)
}

#[tokio::test]
async fn an_older_generation_changes_nothing_and_learns_the_newer_one() {
    let place = Place::new();
    place.save(5, "new").await;
    assert_eq!(
        place.save(4, "old").await,
        Saved::Newer(Box::new(sample(5, Some("new"))))
    );
    assert_eq!(place.load().await, Some(sample(5, Some("new"))));
}

#[tokio::test]
async fn a_second_process_is_told_who_has_the_folder() {
    let place = Place::new();
    let first = place.open();
    let error = FileStore::open(&place.folder, None).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(&format!("another wxgate (pid {})", std::process::id())),
        "{text}"
    );
    assert!(text.contains("store.path"), "{text}");
    drop(first);
    place.open();
}

#[tokio::test]
async fn damage_of_any_kind_falls_back_to_the_previous_record_and_is_kept() {
    let place = Place::new();
    place.save(1, "a").await;
    place.save(2, "b").await;
    let good = fs::read(place.file("")).unwrap();
    for cut in 0..good.len() {
        for aside in ["", ".damaged"] {
            let _ = fs::remove_file(place.file(aside));
        }
        fs::write(place.file(""), &good[..cut]).unwrap();
        assert_eq!(
            place.load().await,
            Some(sample(1, Some("a"))),
            "cut at {cut}"
        );
        assert_eq!(fs::read(place.file(".damaged")).unwrap(), &good[..cut]);
    }
}

#[tokio::test]
async fn every_flipped_byte_is_noticed() {
    let place = Place::new();
    place.save(1, "a").await;
    let good = fs::read(place.file("")).unwrap();
    for at in 0..good.len() {
        let _ = fs::remove_file(place.file(".damaged"));
        let mut bad = good.clone();
        bad[at] ^= 0xff;
        fs::write(place.file(""), &bad).unwrap();
        assert_eq!(place.load().await, None, "byte {at}");
    }
}

#[tokio::test]
async fn damaged_files_do_not_pile_up_for_ever() {
    let place = Place::new();
    place.open();
    for n in 0..20 {
        fs::write(place.file(""), format!("garbage {n}")).unwrap();
        assert_eq!(place.load().await, None);
    }
    let kept = fs::read_dir(&place.folder)
        .unwrap()
        .filter(|e| e.as_ref().unwrap().path() != place.folder.join("lock"));
    assert_eq!(kept.count(), 9);
    assert_eq!(
        fs::read_to_string(place.file(".damaged")).unwrap(),
        "garbage 0",
        "the first is never overwritten"
    );
}

#[tokio::test]
async fn links_pipes_sockets_folders_and_giants_are_set_aside() {
    let place = Place::new();
    let elsewhere = place.folder.with_extension("elsewhere");
    place.save(1, "a").await;
    fs::rename(place.file(""), &elsewhere).unwrap();
    let odd: [(&str, Make); 5] = [
        ("link", |path, elsewhere| symlink(elsewhere, path).unwrap()),
        ("pipe", |path, _| {
            rustix::fs::mkfifoat(rustix::fs::CWD, path, rustix::fs::Mode::from(0o600)).unwrap();
        }),
        ("socket", |path, _| drop(UnixListener::bind(path).unwrap())),
        ("folder", |path, _| fs::create_dir(path).unwrap()),
        ("giant", |path, _| {
            File::create(path).unwrap().set_len(1 << 30).unwrap();
        }),
    ];
    for (what, make) in odd {
        make(&place.file(""), &elsewhere);
        assert_eq!(place.load().await, None, "{what}");
        assert!(
            fs::symlink_metadata(place.file("")).is_err(),
            "{what} is still there"
        );
        assert_eq!(place.save(2, "b").await, Saved::Written, "{what}");
        fs::remove_file(place.file("")).unwrap();
        let _ = fs::remove_file(place.file(".bak"));
    }
    assert!(
        codec_of(&elsewhere).is_some(),
        "what the link pointed at is untouched"
    );
}

#[tokio::test]
async fn a_write_that_was_cut_short_leaves_the_old_record_and_does_not_stand_in_the_way() {
    let place = Place::new();
    place.save(1, "a").await;
    fs::write(place.folder.join(".shop.json.new"), b"{\"format\":1,\"sha").unwrap();
    assert_eq!(place.load().await, Some(sample(1, Some("a"))));
    assert_eq!(place.save(2, "b").await, Saved::Written);
    assert_eq!(place.load().await, Some(sample(2, Some("b"))));
}

#[tokio::test]
async fn a_crash_between_any_two_steps_of_a_write_leaves_the_old_record_or_the_new_one() {
    // States of the folder after each step of a write.
    let place = Place::new();
    place.save(1, "a").await;
    place.save(2, "b").await;
    let new = Codec::default().encode(&name(), &sample(3, Some("c")));
    let fresh = place.folder.join(".shop.json.new");
    let steps: [&dyn Fn(); 4] = [
        &|| fs::write(&fresh, &new).unwrap(),
        &|| fs::remove_file(place.file(".bak")).unwrap(),
        &|| fs::hard_link(place.file(""), place.file(".bak")).unwrap(),
        &|| fs::rename(&fresh, place.file("")).unwrap(),
    ];
    for (n, step) in steps.iter().enumerate() {
        step();
        let expected = if n == 3 {
            sample(3, Some("c"))
        } else {
            sample(2, Some("b"))
        };
        assert_eq!(place.load().await, Some(expected), "after step {n}");
    }
}

#[tokio::test]
async fn a_folder_or_a_file_that_is_open_to_others_is_not_left_so() {
    let place = Place::new();
    place.save(1, "a").await;
    fs::set_permissions(place.file(""), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(place.load().await.is_some());
    assert_eq!(mode(&place.file("")), 0o600);
    fs::set_permissions(&place.folder, fs::Permissions::from_mode(0o777)).unwrap();
    let text = FileStore::open(&place.folder, None)
        .unwrap_err()
        .to_string();
    assert!(text.contains("chmod 700"), "{text}");
}

#[tokio::test]
async fn a_write_that_fails_leaves_the_old_record_and_says_what_to_check() {
    let place = Place::new();
    let store = place.open();
    store.save(&name(), sample(1, Some("a"))).await.unwrap();
    // A folder in the way of the temporary file fails for root as well.
    fs::create_dir(place.folder.join(".shop.json.new")).unwrap();
    let error = store.save(&name(), sample(2, Some("b"))).await.unwrap_err();
    assert_eq!(error.label(), "io");
    assert!(error.to_string().contains("check space"), "{error}");
    assert_eq!(codec_of(&place.file("")), Some(sample(1, Some("a"))));
    fs::remove_dir(place.folder.join(".shop.json.new")).unwrap();
    assert_eq!(
        store.save(&name(), sample(2, Some("b"))).await,
        Ok(Saved::Written)
    );
}

#[tokio::test]
async fn a_passed_lock_opens_the_folder_and_each_process_sees_what_the_other_writes() {
    let place = Place::new();
    let old = place.open();
    assert_eq!(
        old.save(&name(), sample(1, Some("a"))).await,
        Ok(Saved::Written)
    );
    let passed = old.lock().duplicate().unwrap();
    let new = FileStore::open_with(&place.folder, None, Some(passed)).unwrap();
    assert_eq!(new.load(&name()).await, Ok(Some(sample(1, Some("a")))));
    assert_eq!(
        new.save(&name(), sample(2, Some("b"))).await,
        Ok(Saved::Written)
    );
    assert_eq!(old.load(&name()).await, Ok(Some(sample(2, Some("b")))));
    assert_eq!(
        old.save(&name(), sample(3, Some("c"))).await,
        Ok(Saved::Written)
    );
    assert_eq!(new.load(&name()).await, Ok(Some(sample(3, Some("c")))));
    // The lock lives as long as one of them.
    drop(old);
    let third = FileStore::open(&place.folder, None);
    assert!(matches!(third, Err(OpenError::Locked { .. })), "{third:?}");
    // The lock of another folder opens none.
    let (other, elsewhere) = (Place::new(), new.lock().duplicate().unwrap());
    let _other = other.open();
    let refused = FileStore::open_with(&other.folder, None, Some(elsewhere));
    assert!(
        matches!(refused, Err(OpenError::Locked { .. })),
        "{refused:?}"
    );
    drop(new);
    place.open();
}
