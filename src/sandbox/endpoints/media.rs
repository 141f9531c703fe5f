//! Files that go up and come down, and pictures that are made on demand.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use serde::Serialize;
use serde_json::json;

use super::{Call, text};
use crate::sandbox::{
    answer::{Answer, Body, blob_piece},
    multipart::File,
    settings::Platform,
};

/// So much of all uploads together can be downloaded again.
const CONTENT_KEPT: usize = 64 << 20;
/// So many uploads are remembered.
const UPLOADS_KEPT: usize = 1000;

/// An upload that was accepted.
#[derive(Debug, Clone, Serialize)]
pub struct Upload {
    /// Under which it can be downloaded.
    pub media_id: String,
    /// `image`, `voice`, `video`, `thumb`, `file`.
    pub kind: String,
    /// As the part said.
    pub content_type: String,
    /// Bytes of the file.
    pub length: u64,
    /// SHA-256 of the file, in hex.
    pub sha256: String,
    #[serde(skip)]
    content: Option<Bytes>,
}

/// Uploads, newest last.
#[derive(Debug, Default)]
pub(in crate::sandbox) struct Shelf(Mutex<VecDeque<Upload>>);

impl Shelf {
    pub(in crate::sandbox) fn list(&self) -> Vec<Upload> {
        self.uploads().iter().cloned().collect()
    }

    fn find(&self, media_id: &str) -> Option<Upload> {
        self.uploads()
            .iter()
            .find(|upload| upload.media_id == media_id)
            .cloned()
    }

    fn put(&self, upload: Upload) {
        let mut uploads = self.uploads();
        uploads.push_back(upload);
        let kept = |uploads: &VecDeque<Upload>| {
            uploads
                .iter()
                .filter_map(|u| u.content.as_ref())
                .map(Bytes::len)
                .sum::<usize>()
        };
        while uploads.len() > UPLOADS_KEPT || kept(&uploads) > CONTENT_KEPT {
            uploads.pop_front();
        }
    }

    fn uploads(&self) -> MutexGuard<'_, VecDeque<Upload>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the path takes a file.
pub(in crate::sandbox) fn takes_file(path: &str) -> bool {
    matches!(
        path,
        "/cgi-bin/media/upload" | "/cgi-bin/media/uploadimg" | "/cgi-bin/material/add_material"
    )
}

/// Whether the path reads its JSON body.
pub(super) fn reads_body(path: &str) -> bool {
    matches!(
        path,
        "/wxa/getwxacodeunlimit"
            | "/wxa/getwxacode"
            | "/cgi-bin/wxaapp/createwxaqrcode"
            | "/cgi-bin/material/get_material"
    )
}

/// `POST cgi-bin/media/upload?type=image` with a part named `media`.
pub(super) fn upload(call: Call<'_>) -> Answer {
    let Some(file) = &call.body.file else {
        return call.error(41005);
    };
    let kind = call.head.param("type").unwrap_or_default();
    let wants_kind = call.head.path() != "/cgi-bin/media/uploadimg";
    if wants_kind
        && !matches!(
            kind.as_str(),
            "image" | "voice" | "video" | "thumb" | "file"
        )
    {
        return call.error(40004);
    }
    let media_id = call.shared.state.noise.text(64);
    call.shared
        .shelf
        .put(record(file, media_id.clone(), kind.clone()));
    let created_at = call.shared.state.clock.unix();
    match call.head.path() {
        "/cgi-bin/media/uploadimg" => {
            call.ok(&json!({"url": format!("http://mmbiz.qpic.cn/mmbiz/{media_id}/0")}))
        }
        "/cgi-bin/material/add_material" => call.ok(&json!({"media_id": media_id})),
        // WeCom writes the number as a text.
        _ if call.judged.platform == Platform::Wecom => call
            .ok(&json!({"type": kind, "media_id": media_id, "created_at": created_at.to_string()})),
        _ => call.ok(&json!({"type": kind, "media_id": media_id, "created_at": created_at})),
    }
}

fn record(file: &File, media_id: String, kind: String) -> Upload {
    Upload {
        media_id,
        kind,
        content_type: file
            .content_type
            .clone()
            .unwrap_or_else(|| "application/octet-stream".to_owned()),
        length: file.length,
        sha256: file.sha256.clone(),
        content: file.content.clone(),
    }
}

/// `GET cgi-bin/media/get?media_id=`: what was uploaded; `blob-N`, that many bytes made on the way;
/// `video…`, a link.
pub(super) fn get(call: Call<'_>) -> Answer {
    let Some(media_id) = call.head.param("media_id") else {
        return call.error(40007);
    };
    if let Some(length) = media_id
        .strip_prefix("blob-")
        .and_then(|digits| digits.parse().ok())
    {
        return attachment("image/jpeg", &media_id, Body::Blob(length));
    }
    if media_id.starts_with("video") {
        return call.ok(&json!({"video_url": format!("http://203.0.113.30/{media_id}.mp4")}));
    }
    kept(call, &media_id)
}

/// `POST cgi-bin/material/get_material` with the `media_id` in a JSON body: what was uploaded.
pub(super) fn get_material(call: Call<'_>) -> Answer {
    if call.head.method() != "POST" {
        return call.error(43002);
    }
    let Some(body) = call.json() else {
        return call.error(47001);
    };
    text(&body, "media_id").map_or_else(|| call.error(40007), |media_id| kept(call, &media_id))
}

fn kept(call: Call<'_>, media_id: &str) -> Answer {
    match call.shared.shelf.find(media_id) {
        Some(Upload {
            content: Some(content),
            content_type,
            ..
        }) => attachment(&content_type, media_id, Body::Bytes(content)),
        _ => call.error(40007),
    }
}

fn attachment(content_type: &str, media_id: &str, body: Body) -> Answer {
    let disposition = format!("attachment; filename=\"{media_id}.jpg\"");
    Answer::binary(content_type.to_owned(), body).with_header("Content-disposition", disposition)
}

/// `POST wxa/getwxacodeunlimit` and its relatives: a picture, or an error in JSON.
pub(super) fn code(call: Call<'_>) -> Answer {
    if call.head.method() != "POST" {
        return call.error(43002);
    }
    let Some(body) = call.json() else {
        return call.error(47001);
    };
    let unlimited = call.head.path() == "/wxa/getwxacodeunlimit";
    if unlimited && text(&body, "scene").is_none_or(|scene| scene.chars().count() > 32) {
        return call.error(40169);
    }
    if text(&body, "page").is_some_and(|page| page.starts_with('/')) {
        return call.error(41030);
    }
    Answer::binary("image/jpeg", Body::Bytes(picture(&call.body.kept)))
}

/// Bytes that begin and end like a JPEG, the same for the same request.
fn picture(request: &[u8]) -> Bytes {
    let offset = request.iter().fold(0_u64, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u64::from(*byte))
    }) % 1000;
    let noise = blob_piece(offset, 2048 + offset);
    Bytes::from([&[0xff, 0xd8, 0xff, 0xe0][..], &noise, &[0xff, 0xd9]].concat())
}
