// Verify-proof checks the proof of one audit event, given a public key.
//
//	verify-proof --key VKEY PROOF
//
// prints the event and exits with 0 if the log of that key holds it, or says on stderr why not and exits with 1.
//
// VKEY is <log name>+<key id>+<public key>, or the same with <log name>/<directory id>; it must have reached you
// separately from the proof. PROOF is what `otel-audit prove` wrote, in the format C2SP tlog-proof v1.
//
// Signatures, notes, checkpoints and trees are left to golang.org/x/mod and filippo.io/torchwood. What stands here is
// what they cannot know: which lines the trees hold, and that each text can be read in one way only.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const (
	mostBytes     = 16 << 20
	mostNoteBytes = 1 << 20
	mostLevels    = 64 // of lists and objects in JSON
)

var (
	// How each entry of a ledger begins.
	entryBegin = []byte(`{"system":"ledger","event_type":"audit.ledger",`)
	id         = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	number     = regexp.MustCompile(`^(?:0|[1-9][0-9]{0,18})$`)
)

func main() {
	key := flag.String("key", "", "the public key that you trust")
	flag.Usage = func() { fmt.Fprintln(flag.CommandLine.Output(), "usage: verify-proof --key VKEY PROOF") }
	flag.Parse()
	if *key == "" || flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	event, err := provenEvent(flag.Arg(0), *key)
	if err == nil {
		_, err = os.Stdout.Write(append(event, '\n'))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "refused:", err)
		os.Exit(1)
	}
}

// provenEvent returns the event that a proof shows to somebody who trusts the key.
func provenEvent(path, vkey string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	raw, err := io.ReadAll(io.LimitReader(file, mostBytes+1))
	if err != nil {
		return nil, err
	}
	proof, err := parseProof(raw)
	if err != nil {
		return nil, err
	}
	policy, directoryID, err := verifiedNote(proof.note, vkey)
	if err != nil {
		return nil, err
	}
	root, size, stream, err := readHead(proof, directoryID)
	if err != nil {
		return nil, err
	}
	if err := torchwood.VerifyProof(policy, leaf(proof.head), raw); err != nil {
		return nil, fmt.Errorf("head in the ledger: %w", err)
	}
	line, err := readLine(proof.event, "event")
	if err != nil {
		return nil, err
	}
	switch system := line.object["system"]; {
	case system == "ledger" || system == "note" || line.stream == directoryID:
		return nil, errors.New("event: expected no line of a ledger")
	case line.stream != stream:
		return nil, errors.New("head: expected one of the event's stream")
	case proof.eventIndex != line.seq-1:
		return nil, errors.New("index of the event: expected its seq, less one")
	case proof.size != size:
		return nil, errors.New("size of the stream: expected that of the head")
	}
	if err := tlog.CheckRecord(proof.eventPath, size, root, proof.eventIndex, leaf(proof.event)); err != nil {
		return nil, fmt.Errorf("event in its stream: %w", err)
	}
	return proof.event, nil
}

// leaf returns the hash of a line as a leaf of its tree: the entry is the SHA-256 of the line.
func leaf(line []byte) tlog.Hash {
	digest := sha256.Sum256(line)
	return tlog.RecordHash(digest[:])
}

// verifiedNote returns what is demanded of the note, which the key has signed, and the id in its origin.
func verifiedNote(signed []byte, vkey string) (torchwood.Policy, string, error) {
	logName, public, err := parseKey(vkey)
	if err != nil {
		return nil, "", err
	}
	origin, _, _ := strings.Cut(string(signed), "\n")
	directoryID, found := strings.CutPrefix(origin, logName+"/")
	if !found || !id.MatchString(directoryID) {
		return nil, "", fmt.Errorf("origin: expected %s/<directory id>, as the key is of that log, got %q", logName, origin)
	}
	// The key id depends on the name, and the note is signed under the name of the directory.
	own, err := note.NewEd25519VerifierKey(origin, public)
	if err != nil {
		return nil, "", err
	}
	verifier, err := note.NewVerifier(own)
	if err != nil {
		return nil, "", fmt.Errorf("origin: %w", err)
	}
	policy := torchwood.ThresholdPolicy(2, torchwood.OriginPolicy(origin), torchwood.SingleVerifierPolicy(verifier))
	checkpoint, opened, err := torchwood.VerifyCheckpoint(signed, policy)
	if err != nil {
		return nil, "", err
	}
	if checkpoint.Extension != "" || checkpoint.String() != opened.Text {
		return nil, "", errors.New("checkpoint: expected three lines: origin, size, root")
	}
	return policy, directoryID, checkSignatures(signed, opened.Text, verifier)
}

// checkSignatures refuses what note.Open lets through: base64 of two spellings, control characters in a name, and a
// second signature of the same key that is not valid.
func checkSignatures(signed []byte, text string, verifier note.Verifier) error {
	lines := strings.Split(strings.TrimSuffix(string(signed[len(text)+1:]), "\n"), "\n")
	for _, line := range lines {
		name, encoded, _ := strings.Cut(strings.TrimPrefix(line, "\u2014 "), " ")
		value, err := canonicalBase64(encoded, "signature")
		if err != nil {
			return err
		}
		if strings.ContainsFunc(name, unicode.IsControl) {
			return errors.New("note: expected no control characters in a name")
		}
		own := name == verifier.Name() && [4]byte(value[:4]) == keyID(verifier.KeyHash())
		if own && !verifier.Verify([]byte(text), value[4:]) {
			return errors.New("note: expected a valid signature of the key")
		}
	}
	return nil
}

func keyID(hash uint32) [4]byte {
	return [4]byte{byte(hash >> 24), byte(hash >> 16), byte(hash >> 8), byte(hash)}
}

// parseKey returns the log name and the public key of a trusted key.
func parseKey(vkey string) (string, []byte, error) {
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		return "", nil, fmt.Errorf("key: %w", err)
	}
	name, rest, _ := strings.Cut(vkey, "+")
	written, encoded, _ := strings.Cut(rest, "+")
	material, err := canonicalBase64(encoded, "key")
	if err != nil {
		return "", nil, err
	}
	if written != fmt.Sprintf("%08x", verifier.KeyHash()) || strings.ContainsFunc(name, unicode.IsControl) {
		return "", nil, errors.New("key: expected <name>+<key id in lower case>+<base64>")
	}
	if slash := strings.LastIndex(name, "/"); slash >= 0 && id.MatchString(name[slash+1:]) {
		name = name[:slash]
	}
	return name, material[1:], nil
}

// readHead returns what the entry of the ledger says: the root, size and id of a stream.
func readHead(proof *proof, directoryID string) (root tlog.Hash, size int64, stream string, err error) {
	line, err := readLine(proof.head, "head")
	if err != nil {
		return root, 0, "", err
	}
	content, _ := line.object["ledger"].(map[string]any)
	stream, isText := content["stream"].(string)
	encoded, hasRoot := content["root"].(string)
	switch {
	case !bytes.HasPrefix(proof.head, entryBegin):
		return root, 0, "", errors.New("head: expected an entry of a ledger")
	case line.stream != directoryID:
		return root, 0, "", errors.New("head: expected a line of the ledger of the origin")
	case line.seq != proof.index+1:
		return root, 0, "", errors.New("head: expected the number of its leaf, plus one, as its seq")
	case content["kind"] != "head" && content["kind"] != "adopt" && content["kind"] != "end":
		return root, 0, "", errors.New("head: expected the kind head, adopt or end")
	case !isText || !hasRoot:
		return root, 0, "", errors.New("head: expected a stream and its root as texts")
	}
	if size, err = wholeNumber(content["size"], "size in the head"); err != nil {
		return root, 0, "", err
	}
	root, err = hashOf(encoded, "root in the head")
	return root, size, stream, err
}

// A line of a journal, with the keys that the journal gave it.
type line struct {
	object map[string]any
	stream string
	seq    int64
}

func readLine(raw []byte, what string) (line, error) {
	object, err := readObject(raw, what)
	if err != nil {
		return line{}, err
	}
	stream, _ := object["stream_id"].(string)
	if !id.MatchString(stream) {
		return line{}, fmt.Errorf("%s: expected the id of a stream", what)
	}
	seq, err := wholeNumber(object["seq"], "seq of the "+what)
	if err != nil {
		return line{}, err
	}
	if seq == 0 {
		return line{}, fmt.Errorf("seq of the %s: expected a number from 1 on", what)
	}
	return line{object, stream, seq}, nil
}

// A proof as it is read; nothing of it is to be believed yet.
type proof struct {
	index       int64 // of the head in the ledger
	note        []byte
	event, head []byte
	eventIndex  int64
	eventPath   tlog.RecordProof
	size        int64
}

func parseProof(raw []byte) (*proof, error) {
	if len(raw) > mostBytes {
		return nil, fmt.Errorf("proof: expected at most %d bytes", mostBytes)
	}
	before, signed, found := bytes.Cut(raw, []byte("\n\n"))
	if !found {
		return nil, errors.New("proof: expected an empty line before its note")
	}
	if len(signed) > mostNoteBytes {
		return nil, fmt.Errorf("note: expected at most %d bytes", mostNoteBytes)
	}
	lines := strings.Split(string(before), "\n")
	if len(lines) < 3 || lines[0] != "c2sp.org/tlog-proof@v1" {
		return nil, errors.New("proof: expected the lines c2sp.org/tlog-proof@v1, extra and index")
	}
	encoded, hasExtra := strings.CutPrefix(lines[1], "extra ")
	written, hasIndex := strings.CutPrefix(lines[2], "index ")
	if !hasExtra || !hasIndex {
		return nil, errors.New("proof: expected extra in its second line and index in its third")
	}
	extra, err := canonicalBase64(encoded, "extra")
	if err != nil {
		return nil, err
	}
	parsed, err := parseExtra(extra)
	if err != nil {
		return nil, err
	}
	if parsed.index, err = digits(written, "index"); err != nil {
		return nil, err
	}
	_, err = hashes(lines[3:], "path")
	parsed.note = signed
	return parsed, err
}

func parseExtra(raw []byte) (*proof, error) {
	object, err := readObject(raw, "extra")
	if err != nil {
		return nil, err
	}
	event, hasEvent := object["event"].(string)
	head, hasHead := object["head"].(string)
	list, hasPath := object["path"].([]any)
	if len(object) != 5 || !hasEvent || !hasHead || !hasPath || strings.Contains(event+head, "\n") {
		return nil, errors.New("extra: expected exactly event and head, each a line, path, a list, index and size")
	}
	found := &proof{event: []byte(event), head: []byte(head)}
	if found.eventIndex, err = wholeNumber(object["index"], "index of the event"); err != nil {
		return nil, err
	}
	if found.size, err = wholeNumber(object["size"], "size of the stream"); err != nil {
		return nil, err
	}
	texts := make([]string, len(list))
	for i, each := range list {
		text, isText := each.(string)
		if !isText {
			return nil, errors.New("extra: expected a list of texts as path")
		}
		texts[i] = text
	}
	found.eventPath, err = hashes(texts, "path of the event")
	return found, err
}

func hashes(texts []string, what string) (tlog.RecordProof, error) {
	path := make(tlog.RecordProof, len(texts))
	for i, text := range texts {
		hash, err := hashOf(text, what)
		if err != nil {
			return nil, err
		}
		path[i] = hash
	}
	return path, nil
}

func hashOf(text, what string) (tlog.Hash, error) {
	value, err := canonicalBase64(text, what)
	if err == nil && len(value) != tlog.HashSize {
		err = fmt.Errorf("%s: expected a hash of %d bytes", what, tlog.HashSize)
	}
	if err != nil {
		return tlog.Hash{}, err
	}
	return tlog.Hash(value), nil
}

func canonicalBase64(text, what string) ([]byte, error) {
	value, err := base64.StdEncoding.DecodeString(text)
	if err != nil || base64.StdEncoding.EncodeToString(value) != text {
		return nil, fmt.Errorf("%s: expected canonical base64", what)
	}
	return value, nil
}

func digits(text, what string) (int64, error) {
	value, err := strconv.ParseInt(text, 10, 64)
	if err != nil || !number.MatchString(text) {
		return 0, fmt.Errorf("%s: expected digits up to 2^63-1, no leading zero", what)
	}
	return value, nil
}

func wholeNumber(value any, what string) (int64, error) {
	written, isNumber := value.(json.Number)
	if !isNumber {
		return 0, fmt.Errorf("%s: expected a number", what)
	}
	return digits(written.String(), what)
}

// readObject returns a JSON object that every reader understands alike: each key once, whole characters, not too deep.
func readObject(raw []byte, what string) (map[string]any, error) {
	if !utf8.Valid(raw) || !json.Valid(raw) {
		return nil, fmt.Errorf("%s: expected JSON in UTF-8", what)
	}
	if !hasWholeCharacters(raw) {
		return nil, fmt.Errorf("%s: expected no half surrogate pair", what)
	}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	value, err := readValue(decoder, mostLevels)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	object, isObject := value.(map[string]any)
	if !isObject {
		return nil, fmt.Errorf("%s: expected a JSON object", what)
	}
	return object, nil
}

// readValue reads by tokens, since a map that the decoder fills keeps the last of two equal keys.
func readValue(decoder *json.Decoder, levels int) (any, error) {
	token, err := decoder.Token()
	if err != nil {
		return nil, err
	}
	delimiter, opens := token.(json.Delim)
	if levels < 0 {
		return nil, fmt.Errorf("expected at most %d levels", mostLevels)
	}
	if !opens {
		return token, nil
	}
	list, object := []any{}, map[string]any{}
	for decoder.More() {
		var key string
		if delimiter == '{' {
			token, err := decoder.Token()
			if err != nil {
				return nil, err
			}
			key = token.(string)
			if _, twice := object[key]; twice {
				return nil, errors.New("expected each key once")
			}
		}
		value, err := readValue(decoder, levels-1)
		if err != nil {
			return nil, err
		}
		if delimiter == '{' {
			object[key] = value
		} else {
			list = append(list, value)
		}
	}
	if _, err := decoder.Token(); err != nil { // what closes it
		return nil, err
	}
	if delimiter == '{' {
		return object, nil
	}
	return list, nil
}

// hasWholeCharacters looks at the \u escapes of valid JSON: Go reads half of a surrogate pair as another character.
func hasWholeCharacters(raw []byte) bool {
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			continue
		}
		i++
		if raw[i] != 'u' {
			continue
		}
		unit, _ := strconv.ParseUint(string(raw[i+1:i+5]), 16, 16)
		i += 4
		if unit < 0xd800 || unit > 0xdfff {
			continue
		}
		if unit > 0xdbff || i+6 >= len(raw) || raw[i+1] != '\\' || raw[i+2] != 'u' {
			return false
		}
		low, err := strconv.ParseUint(string(raw[i+3:i+7]), 16, 16)
		if err != nil || low < 0xdc00 || low > 0xdfff {
			return false
		}
		i += 6
	}
	return true
}
