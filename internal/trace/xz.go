package trace

import (
	"bytes"
	"errors"
	"fmt"
	"os"
)

// maxDictionary bounds the memory that an xz file may ask for: what "xz -9" writes.
const maxDictionary = 64 << 20

// xzHeadLen is how much of an xz file checkDictionary wants: the stream header and the longest
// block header.
const xzHeadLen = 12 + 1024

var xzMagic = []byte{0xFD, '7', 'z', 'X', 'Z', 0x00}

var errHeader = errors.New("the xz block header is cut or of a kind not known here (want one LZMA2 filter)")

// checkDictionary refuses a file whose first block declares a dictionary over maxDictionary, since
// the decoder allocates what is declared. A writer uses one size for all blocks of a file. Layout:
// sections 2.1.1 and 3.1 of the xz file format 1.2.0; dictionary size: section 5.3.1.
func checkDictionary(head []byte) error {
	const streamHeader, hasPacked, hasUnpacked, lzma2 = 12, 0x40, 0x80, 0x21
	if len(head) <= streamHeader || head[streamHeader] == 0 {
		return nil // no block at all: the decoder says what is wrong, or that it is empty
	}
	block := head[streamHeader:]
	if len(block) < 2 {
		return errHeader
	}
	flags, rest := block[1], block[2:]
	for _, present := range []byte{hasPacked, hasUnpacked} {
		if flags&present == 0 {
			continue
		}
		n := 0
		for n < len(rest) && rest[n]&0x80 != 0 {
			n++
		}
		rest = rest[min(n+1, len(rest)):]
	}
	if len(rest) < 3 || rest[0] != lzma2 || rest[1] != 1 {
		return errHeader
	}
	bits := uint(rest[2] & 0x3F)
	if bits > 40 {
		return errHeader
	}
	if size := (uint64(2) | uint64(bits&1)) << (bits/2 + 11); size > maxDictionary {
		return fmt.Errorf("the xz dictionary is %d bytes, over the limit of %d: pack the file again with xz -9 or lower", size, maxDictionary)
	}
	return nil
}

// checkFooter refuses a file that is cut: the decoder takes a missing index for the regular end. An
// xz file ends with the magic of its stream footer (section 2.1.2.4), behind which there may be
// zeros (section 2.2; a sane amount of them is looked at).
func checkFooter(f *os.File) error {
	end, err := f.Stat()
	if err != nil {
		return err
	}
	tail := make([]byte, min(end.Size(), 4096))
	if _, err := f.ReadAt(tail, end.Size()-int64(len(tail))); err != nil {
		return err
	}
	if !bytes.HasSuffix(bytes.TrimRight(tail, "\x00"), []byte("YZ")) {
		return errors.New("the file is cut: it does not end with the footer of an xz stream")
	}
	return nil
}
