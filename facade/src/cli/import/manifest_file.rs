//! The images that a docker compose file or Kubernetes manifests name. ◇
//!
//! Reads what people keep beside their code, in as many YAML documents as the file has: compose files, manifests as they are
//! written, and what `helm template` or `kustomize build` print. What would have to be guessed is refused with the place
//! where it stands.

use std::collections::BTreeMap;

use pki::oci::Reference;
use serde_json::{Map, Value};

use super::variables;

const MAX_BYTES: usize = 16 * 1024 * 1024;
/// Deepest nesting that is searched for containers.
const MAX_DEPTH: usize = 64;

/// An image of the file, or why it cannot be imported.
#[derive(Debug)]
pub(super) struct Named {
    /// As the file has it, with variables filled in.
    pub(super) image: String,
    /// Where in the file: `service web`, `Deployment/shop`.
    pub(super) places: Vec<String>,
    /// What it refers to.
    pub(super) reference: Result<Reference, String>,
}

/// The images of a file, each once, document by document and there by name of the service; and what was left out.
#[derive(Debug, Default)]
pub(super) struct Images {
    pub(super) named: Vec<Named>,
    pub(super) notes: Vec<String>,
}

/// Reads a file. `values` are those of the variables of a compose file.
pub(super) fn read(text: &str, values: &BTreeMap<String, String>) -> Result<Images, String> {
    if text.len() > MAX_BYTES {
        return Err(format!("it is longer than {MAX_BYTES} bytes"));
    }
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| {
        let first = error.to_string();
        let first = first.lines().next().unwrap_or_default();
        let hint = if text.contains("{{") {
            " (a template must be rendered first: helm template CHART | facade import --from-file -)"
        } else {
            ""
        };
        format!("it is not YAML: {first}{hint}")
    })?;
    let mut images = Images::default();
    let mut known = false;
    for document in &documents {
        known |= images.take(document, values);
    }
    if !known {
        return Err(
            "it is neither a docker compose file (services) nor Kubernetes manifests (apiVersion, kind)"
                .to_owned(),
        );
    }
    Ok(images)
}

impl Images {
    /// Takes one document; whether it is of a kind that is known.
    fn take(&mut self, document: &Value, values: &BTreeMap<String, String>) -> bool {
        if let Some(services) = document.get("services").and_then(Value::as_object)
            && document.get("apiVersion").is_none()
        {
            self.take_compose(document, services, values);
            return true;
        }
        if document.get("apiVersion").is_some() && document.get("kind").is_some() {
            self.search(document, &title(document), 0);
            return true;
        }
        // An empty document, or one of comments only, says nothing about the file.
        false
    }

    fn take_compose(
        &mut self,
        document: &Value,
        services: &Map<String, Value>,
        values: &BTreeMap<String, String>,
    ) {
        if document.get("include").is_some() {
            self.notes.push("the files that it includes are not read; import them too".to_owned());
        }
        for (name, service) in services {
            let place = format!("service {name}");
            match service.get("image").and_then(Value::as_str) {
                Some(image) => match variables::fill(image, values) {
                    Ok(image) => self.name(&image, place),
                    Err(reason) => self.refuse(image, place, reason),
                },
                None if service.get("extends").is_some() => {
                    self.notes.push(format!("{place} has the image of the service that it extends"));
                }
                None => self.notes.push(format!("{place} is built, not pulled: it names no image")),
            }
        }
    }

    /// Finds containers wherever a manifest has them: in pods, templates of pods, lists, and custom resources.
    fn search(&mut self, value: &Value, place: &str, depth: usize) {
        if depth > MAX_DEPTH {
            self.notes.push(format!("{place} is nested too deeply to be read whole"));
            return;
        }
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.search(item, place, depth + 1)),
            Value::Object(fields) => {
                // An item of a list is an object of its own.
                let own = (depth > 0 && fields.contains_key("apiVersion") && fields.contains_key("kind"))
                    .then(|| title(value));
                let place = own.as_deref().unwrap_or(place);
                for (key, field) in fields {
                    match key.as_str() {
                        "containers" | "initContainers" | "ephemeralContainers" => {
                            self.take_containers(field, place);
                        }
                        "volumes" => self.take_volumes(field, place),
                        _ => self.search(field, place, depth + 1),
                    }
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    fn take_containers(&mut self, containers: &Value, place: &str) {
        for container in containers.as_array().into_iter().flatten() {
            if let Some(image) = container.get("image").and_then(Value::as_str) {
                self.name(image, place.to_owned());
            }
        }
    }

    /// Volumes that are images (KEP-4639).
    fn take_volumes(&mut self, volumes: &Value, place: &str) {
        for volume in volumes.as_array().into_iter().flatten() {
            let image = volume.get("image").and_then(|image| image.get("reference")).and_then(Value::as_str);
            if let Some(image) = image {
                self.name(image, place.to_owned());
            }
        }
    }

    fn name(&mut self, image: &str, place: String) {
        match image.trim().parse::<Reference>() {
            Ok(reference) => self.add(image.trim(), place, Ok(reference)),
            Err(error) => self.refuse(image, place, error.to_string()),
        }
    }

    fn refuse(&mut self, image: &str, place: String, reason: String) {
        self.add(image, place, Err(reason));
    }

    fn add(&mut self, image: &str, place: String, reference: Result<Reference, String>) {
        let same = |named: &&mut Named| match (&named.reference, &reference) {
            (Ok(one), Ok(other)) => one == other,
            (Err(_), Err(_)) => named.image == image,
            _ => false,
        };
        match self.named.iter_mut().find(same) {
            Some(named) if named.places.contains(&place) => {}
            Some(named) => named.places.push(place),
            None => self.named.push(Named { image: image.to_owned(), places: vec![place], reference }),
        }
    }
}

/// `Deployment/shop`.
fn title(object: &Value) -> String {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or("?").to_owned();
    let kind = text(object.get("kind"));
    match object.get("metadata").and_then(|metadata| metadata.get("name").or(metadata.get("generateName"))) {
        Some(name) => format!("{kind}/{}", text(Some(name))),
        None => kind,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `image = reference or error < places`.
    fn shown(text: &str, values: &[(&str, &str)]) -> Vec<String> {
        let values = values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let images = read(text, &values).unwrap();
        let named = images.named.iter().map(|named| {
            let what = match &named.reference {
                Ok(reference) => reference.to_string(),
                Err(_) => "refused".to_owned(),
            };
            format!("{what} < {}", named.places.join(", "))
        });
        named.chain(images.notes.iter().map(|note| format!("note: {note}"))).collect()
    }

    #[test]
    fn reads_compose_files() {
        let text = r#"
x-common: &common
  restart: always
services:
  web:
    <<: *common
    image: nginx
  api:
    image: "ghcr.io/octo/api:${TAG:-v1}"
  worker:
    image: ghcr.io/octo/api:v1
  db:
    image: postgres:${PG_VERSION}
  own:
    build: .
"#;
        assert_eq!(
            shown(text, &[]),
            [
                "ghcr.io/octo/api:v1 < service api, service worker",
                "refused < service db",
                "docker.io/library/nginx < service web",
                "note: service own is built, not pulled: it names no image",
            ]
        );
        let given = shown(text, &[("PG_VERSION", "16"), ("TAG", "v2")]);
        assert_eq!(given[0], "ghcr.io/octo/api:v2 < service api");
        assert_eq!(given[1], "docker.io/library/postgres:16 < service db");
    }

    #[test]
    fn finds_containers_wherever_kubernetes_has_them() {
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let text = format!(
            r#"
# Source: chart/templates/a.yaml
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: shop}}
spec:
  template:
    spec:
      initContainers: [{{name: init, image: "busybox:1.36"}}]
      containers:
        - {{name: app, image: "quay.io/team/app@{digest}"}}
      volumes:
        - {{name: model, image: {{reference: "ghcr.io/team/model:v3"}}}}
---
---
apiVersion: v1
kind: List
items:
  - apiVersion: batch/v1
    kind: CronJob
    metadata: {{name: nightly}}
    spec: {{jobTemplate: {{spec: {{template: {{spec: {{containers: [{{image: "busybox:1.36"}}]}}}}}}}}}}
  - apiVersion: v1
    kind: ConfigMap
    metadata: {{name: settings}}
    data: {{image: not-one}}
"#
        );
        let mut found = shown(&text, &[]);
        found.sort();
        assert_eq!(
            found,
            [
                "docker.io/library/busybox:1.36 < Deployment/shop, CronJob/nightly".to_owned(),
                "ghcr.io/team/model:v3 < Deployment/shop".to_owned(),
                format!("quay.io/team/app@{digest} < Deployment/shop"),
            ]
        );
    }

    #[test]
    fn rejects_files_of_other_kinds_and_says_how_templates_are_rendered() {
        let refused = |text: &str| read(text, &BTreeMap::new()).unwrap_err();
        for text in ["", "a: 1", "- x", "7", "# nothing\n---\n"] {
            assert!(refused(text).contains("neither a docker compose file"), "{text}");
        }
        assert!(refused("a: [1").contains("not YAML"));
        assert!(refused("image: {{ .Values.image }}:{{ .Values.tag }}\n").contains("helm template"));
        let huge = "x".repeat(MAX_BYTES + 1);
        assert!(refused(&huge).contains("longer"));
    }

    #[test]
    fn aliases_do_not_multiply_without_end() {
        let mut lines = vec!["a0: &a0 [x, x, x, x, x, x, x, x, x, x]".to_owned()];
        for level in 1..12 {
            let alias = format!("*a{}, ", level - 1).repeat(10);
            lines.push(format!("a{level}: &a{level} [{alias}]"));
        }
        assert!(read(&lines.join("\n"), &BTreeMap::new()).is_err());
    }

    #[test]
    fn refuses_what_is_no_reference_by_name() {
        let images = read("services: {a: {image: 'UPPER/x:'}}", &BTreeMap::new()).unwrap();
        assert!(images.named[0].reference.is_err());
    }
}
