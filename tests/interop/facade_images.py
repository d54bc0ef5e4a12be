#!/usr/bin/env python3
"""python-tuf (PyPI `tuf`) as a client of a running facade's images repository, through its device door.

    facade_images.py FACADE_URL IDENTITY_DIRECTORY ROOT_FILE NAME…

IDENTITY_DIRECTORY holds a device's `key.pem`, `cert.pem` and `ca.pem`; ROOT_FILE is the first root it trusts. Prints, for each
name, `NAME LENGTH SHA256`, or `NAME none` where the metadata lists no such artifact; then one line with the versions of the
top-level roles. python-tuf has judged all of it: root chain, signatures, versions, delegations to publishers and bins.
"""

import pathlib
import ssl
import sys
import tempfile
import urllib.error
import urllib.request

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater


class Device(FetcherInterface):
    """Fetches as a device: with its certificate, from a facade of its CA."""

    def __init__(self, identity):
        self.context = ssl.create_default_context(cafile=identity / "ca.pem")
        self.context.load_cert_chain(identity / "cert.pem", identity / "key.pem")

    def _fetch(self, url):
        try:
            with urllib.request.urlopen(url, context=self.context, timeout=30) as answer:
                yield answer.read()
        except urllib.error.HTTPError as error:
            raise DownloadHTTPError(str(error), error.code) from error


def main():
    url, identity, root, *names = sys.argv[1:]
    with tempfile.TemporaryDirectory() as home:
        updater = Updater(
            home,
            f"{url}/metadata/images/",
            home,
            f"{url}/targets/",
            fetcher=Device(pathlib.Path(identity)),
            bootstrap=pathlib.Path(root).read_bytes(),
        )
        updater.refresh()
        for name in names:
            info = updater.get_targetinfo(name)
            print(name, "none" if info is None else f"{info.length} {info.hashes['sha256']}")
        trusted = updater._trusted_set
        print("versions", trusted.root.version, trusted.timestamp.version, trusted.snapshot.version)


if __name__ == "__main__":
    main()
