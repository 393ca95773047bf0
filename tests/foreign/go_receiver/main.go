// A webhook receiver with nothing but Go's standard library, as a customer would write it who signs
// with a plain HMAC and not with Standard Webhooks.
//
// Listens on a free port of 127.0.0.1 and prints {"port":N} as its first line. Every path takes
// webhooks: X-Signature must be the lower-case hex HMAC-SHA256 of the raw body, keyed with the text
// in SIGNING_SECRET. Prints one JSON line per request,
//
//	{"verified":true,"type":"...","webhook_id":"..."}
//
// and answers 204; for a wrong signature {"verified":false,...,"error":"..."} and 401.
package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync"
)

// maxBody is far above the largest payload that Tidings accepts.
const maxBody = 4 << 20

type seen struct {
	Verified  bool   `json:"verified"`
	Type      string `json:"type"`
	WebhookID string `json:"webhook_id"`
	Error     string `json:"error,omitempty"`
}

// report prints one JSON line. Requests are served concurrently; a line must arrive whole.
type report struct {
	mutex  sync.Mutex
	output *json.Encoder
}

func (r *report) print(line any) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if err := r.output.Encode(line); err != nil {
		log.Fatal(err)
	}
}

// eventType is named by the body, except where the body is the bare data.
func eventType(body []byte, header http.Header) string {
	var fields struct {
		Type      string `json:"type"`
		EventType string `json:"event_type"`
	}
	// A body that is not JSON has no type; the signature decides what to answer.
	_ = json.Unmarshal(body, &fields)
	for _, name := range []string{fields.Type, fields.EventType} {
		if name != "" {
			return name
		}
	}
	return header.Get("Tidings-Event-Type")
}

// verify compares in constant time, and compares text: upper-case hex is not what was promised.
func verify(secret, body []byte, signature string) bool {
	mac := hmac.New(sha256.New, secret)
	mac.Write(body)
	expected := hex.EncodeToString(mac.Sum(nil))
	return hmac.Equal([]byte(expected), []byte(signature))
}

func main() {
	secret := []byte(os.Getenv("SIGNING_SECRET"))
	if len(secret) == 0 {
		log.Fatal("SIGNING_SECRET is empty")
	}
	out := &report{output: json.NewEncoder(os.Stdout)}

	receive := func(response http.ResponseWriter, request *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(response, request.Body, maxBody))
		if err != nil {
			http.Error(response, "the body could not be read", http.StatusBadRequest)
			return
		}
		line := seen{Type: eventType(body, request.Header), WebhookID: request.Header.Get("webhook-id")}
		line.Verified = verify(secret, body, request.Header.Get("X-Signature"))
		status := http.StatusNoContent
		if !line.Verified {
			line.Error = "no matching signature"
			status = http.StatusUnauthorized
		}
		out.print(line)
		response.WriteHeader(status)
	}

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	out.print(map[string]int{"port": listener.Addr().(*net.TCPAddr).Port})
	log.Fatal(http.Serve(listener, http.HandlerFunc(receive)))
}
