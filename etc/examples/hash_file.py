"""A payload: the MD5 or BLAKE3 hash of a file, written to another file as md5sum and b3sum do.

    hash_file.py md5|blake3 INPUT LFN OUTPUT

It runs under the pilot's Python, needs nothing of Pilotage, and BLAKE3 only needs the package blake3.
"""

import hashlib
import sys

BLOCK = 1 << 20


def new(algorithm):
    if algorithm == "md5":
        return hashlib.md5()
    if algorithm != "blake3":
        sys.exit("hash_file.py: %r is neither md5 nor blake3" % algorithm)
    try:
        from blake3 import blake3
    except ImportError:
        sys.exit("hash_file.py: this node's Python has no blake3: pip install blake3")
    return blake3()


def main(algorithm, source, lfn, target):
    digest = new(algorithm)
    with open(source, "rb") as data:
        for block in iter(lambda: data.read(BLOCK), b""):
            digest.update(block)
    with open(target, "w") as out:
        out.write("%s  %s\n" % (digest.hexdigest(), lfn))


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
