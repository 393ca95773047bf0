// Package receivers verifies webhooks of Tidings: one function per signature scheme, with Go's
// standard library alone.
//
// The body is the raw bytes as they came. Give every secret or key that is valid now: two while a
// rotation overlaps.
package receivers

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Tolerance is how far a timestamp may be from now: anything older may be a replay.
const Tolerance = 5 * time.Minute

func isRecent(timestamp string) bool {
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	return err == nil && time.Since(time.Unix(seconds, 0)).Abs() <= Tolerance
}

func mac(key []byte, parts ...[]byte) []byte {
	hash := hmac.New(sha256.New, key)
	for _, part := range parts {
		hash.Write(part)
	}
	return hash.Sum(nil)
}

// content is what Standard Webhooks signs, and the entries of the header with this version.
func content(header http.Header, version string) (prefix []byte, signatures [][]byte) {
	prefix = []byte(header.Get("webhook-id") + "." + header.Get("webhook-timestamp") + ".")
	for _, entry := range strings.Split(header.Get("webhook-signature"), " ") {
		name, encoded, _ := strings.Cut(entry, ",")
		signature, err := base64.StdEncoding.DecodeString(encoded)
		if name == version && err == nil {
			signatures = append(signatures, signature)
		}
	}
	return prefix, signatures
}

func StandardWebhooks(secrets []string, header http.Header, body []byte) bool {
	prefix, signatures := content(header, "v1")
	for _, secret := range secrets {
		key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
		for _, signature := range signatures {
			if err == nil && hmac.Equal(mac(key, prefix, body), signature) {
				return isRecent(header.Get("webhook-timestamp"))
			}
		}
	}
	return false
}

func StandardWebhooksEd25519(publicKeys []string, header http.Header, body []byte) bool {
	prefix, signatures := content(header, "v1a")
	signed := append(prefix, body...)
	for _, text := range publicKeys {
		key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(text, "whpk_"))
		for _, signature := range signatures {
			if err == nil && len(key) == ed25519.PublicKeySize && ed25519.Verify(key, signed, signature) {
				return isRecent(header.Get("webhook-timestamp"))
			}
		}
	}
	return false
}

func HmacSha256Hex(secrets []string, header http.Header, body []byte) bool {
	return anyHex(secrets, header.Get("X-Signature"), body)
}

func GitHub(secrets []string, header http.Header, body []byte) bool {
	digits, ok := strings.CutPrefix(header.Get("X-Hub-Signature-256"), "sha256=")
	return ok && anyHex(secrets, digits, body)
}

func Stripe(secrets []string, header http.Header, body []byte) bool {
	var timestamp string
	var signatures []string
	for _, item := range strings.Split(header.Get("Stripe-Signature"), ",") {
		switch name, value, _ := strings.Cut(item, "="); name {
		case "t":
			timestamp = value
		case "v1":
			signatures = append(signatures, value)
		}
	}
	for _, signature := range signatures {
		if anyHex(secrets, signature, []byte(timestamp+"."), body) {
			return isRecent(timestamp)
		}
	}
	return false
}

func anyHex(secrets []string, digits string, parts ...[]byte) bool {
	for _, secret := range secrets {
		expected := hex.EncodeToString(mac([]byte(secret), parts...))
		if hmac.Equal([]byte(expected), []byte(digits)) {
			return true
		}
	}
	return false
}
