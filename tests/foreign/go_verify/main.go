// Verifies captured webhooks with the example for receivers, that is with Go's standard library.
//
// Reads one JSON document from standard input:
//
//	[{"schemes": ["stripe"], "secret": "whsec_...", "public_key": "whpk_...",
//	  "headers": {"webhook-id": "..."}, "body_base64": "..."}]
//
// and prints one JSON line per item, in order, as {"stripe": {"examples (Go)": null}}. Null stands
// for a signature that holds, a text for one that does not.
package main

import (
	"bufio"
	"encoding/json"
	"log"
	"net/http"
	"os"

	"receivers"
)

type item struct {
	Schemes   []string          `json:"schemes"`
	Secret    string            `json:"secret"`
	PublicKey string            `json:"public_key"`
	Headers   map[string]string `json:"headers"`
	Body      []byte            `json:"body_base64"`
}

type check func(secrets []string, header http.Header, body []byte) bool

var checks = map[string]check{
	"standard_webhooks":         receivers.StandardWebhooks,
	"standard_webhooks_ed25519": receivers.StandardWebhooksEd25519,
	"hmac_sha256_hex":           receivers.HmacSha256Hex,
	"github":                    receivers.GitHub,
	"stripe":                    receivers.Stripe,
}

func verdicts(item item) map[string]map[string]any {
	header := http.Header{}
	for name, value := range item.Headers {
		header.Set(name, value)
	}
	said := map[string]map[string]any{}
	for _, scheme := range item.Schemes {
		secret := item.Secret
		if scheme == "standard_webhooks_ed25519" {
			secret = item.PublicKey
		}
		var verdict any
		if !checks[scheme]([]string{secret}, header, item.Body) {
			verdict = "no match"
		}
		said[scheme] = map[string]any{"examples (Go)": verdict}
	}
	return said
}

func main() {
	var items []item
	if err := json.NewDecoder(bufio.NewReader(os.Stdin)).Decode(&items); err != nil {
		log.Fatal(err)
	}
	output := bufio.NewWriter(os.Stdout)
	encoder := json.NewEncoder(output)
	for _, item := range items {
		if err := encoder.Encode(verdicts(item)); err != nil {
			log.Fatal(err)
		}
	}
	if err := output.Flush(); err != nil {
		log.Fatal(err)
	}
}
