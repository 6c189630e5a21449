package replay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/freshet-cache/freshet/internal/check"
)

// The shop's headers; see the package examples/shop.
const (
	headerBudget  = "Freshet-Budget"
	headerToken   = "Freshet-Token"
	headerFresh   = "Freshet-Fresh"
	headerTier    = "Freshet-Tier"
	headerReplica = "Freshet-Replica"
)

// maxAnswer bounds the body of an answer, in bytes: a page of a list of the largest products.
const maxAnswer = 4 << 20

func newClient(c Config) *http.Client {
	perHost := c.maxInFlight() + maxPolls
	return &http.Client{
		Transport: &http.Transport{
			DialContext:            (&net.Dialer{Timeout: c.timeout(), KeepAlive: 15 * time.Second}).DialContext,
			MaxIdleConns:           4 * perHost,
			MaxIdleConnsPerHost:    perHost,
			IdleConnTimeout:        time.Minute,
			DisableCompression:     true,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// product is what is read of a product's JSON.
type product struct {
	ID       int64 `json:"id"`
	Revision int64 `json:"revision"`
}

// answer is what a request got.
type answer struct {
	product            // of a single product; zero when absent
	page     []product // of a list
	fresh    bool
	tier     string // l1, l2, owner, source
	replica  string
	token    string
	invoked  time.Duration
	returned time.Duration
}

// failure is a request without a usable answer. kind is a short stable word for counting.
type failure struct {
	kind   string
	detail string
}

func (f *failure) Error() string { return f.kind + ": " + f.detail }

// question is a request to the shop.
type question struct {
	method string
	url    string
	body   string
	budget time.Duration // negative = ask for none
	token  string
	list   bool
}

// ask sends the question and reads the whole answer. On failure answer has its two times.
func (d *Driver) ask(ctx context.Context, q question) (a answer, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.config.timeout())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, q.method, q.url, strings.NewReader(q.body))
	if err != nil {
		return a, &failure{"bad_request", err.Error()}
	}
	if q.body != "" {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	} else {
		req.Body, req.GetBody, req.ContentLength = nil, nil, 0
	}
	switch {
	case q.budget == 0:
		req.Header.Set(headerBudget, "0")
	case q.budget > 0:
		req.Header.Set(headerBudget, q.budget.String())
	}
	if q.token != "" {
		req.Header.Set(headerToken, q.token)
	}
	a.invoked = d.clock()
	resp, err := d.client.Do(req)
	if err != nil {
		a.returned = d.clock()
		return a, transportFailure(err)
	}
	defer resp.Body.Close()
	body, reused := d.bodies.Get().(*bytes.Buffer)
	if !reused {
		body = new(bytes.Buffer)
	}
	defer d.bodies.Put(body)
	body.Reset()
	_, err = body.ReadFrom(io.LimitReader(resp.Body, maxAnswer+1))
	a.returned = d.clock()
	if err != nil {
		return a, transportFailure(err)
	}
	a.replica, a.token, a.tier = resp.Header.Get(headerReplica), resp.Header.Get(headerToken), resp.Header.Get(headerTier)
	missing := resp.StatusCode == http.StatusNotFound && q.method == http.MethodGet && !q.list
	if resp.StatusCode != http.StatusOK && !missing {
		return a, &failure{"http_" + strconv.Itoa(resp.StatusCode), q.method + " " + q.url + ": " + start(body.Bytes())}
	}
	if body.Len() > maxAnswer {
		return a, &failure{"too_large", fmt.Sprintf("%s %s: over %d bytes", q.method, q.url, maxAnswer)}
	}
	if q.method == http.MethodGet {
		switch label := resp.Header.Get(headerFresh); label {
		case "fresh", "stale":
			a.fresh = label == "fresh"
		default:
			return a, &failure{"unlabelled", fmt.Sprintf("GET %s: %s is %.20q, want fresh or stale", q.url, headerFresh, label)}
		}
	}
	if missing {
		return a, nil
	}
	if q.list {
		var page struct {
			Items []product `json:"items"`
		}
		if err = json.Unmarshal(body.Bytes(), &page); err == nil && page.Items == nil {
			err = errors.New("no items")
		}
		a.page = page.Items
	} else if err = json.Unmarshal(body.Bytes(), &a.product); err == nil && a.Revision < 1 {
		err = fmt.Errorf("the revision is %d", a.Revision)
	}
	if err != nil {
		return a, &failure{"unreadable", q.method + " " + q.url + ": " + err.Error()}
	}
	return a, nil
}

// start is enough of a body for an operator.
func start(body []byte) string { return strconv.QuoteToASCII(string(body[:min(len(body), 200)])) }

func transportFailure(err error) *failure {
	kind := "transport"
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		kind = "timeout"
	case errors.Is(err, syscall.ECONNREFUSED):
		kind = "refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		kind = "broken"
	}
	return &failure{kind, err.Error()}
}

// read is a read of one product, with what its session knows.
type read struct {
	id         int64
	budget     time.Duration // negative = ask for none
	due        time.Duration // negative = of no schedule
	token      string
	wrote, saw int64 // see check.Read
}

// read does the read and takes it to the checker.
func (d *Driver) read(ctx context.Context, base string, r read) (answer, bool) {
	a, err := d.ask(ctx, question{
		method: http.MethodGet, url: base + "/products/" + strconv.FormatInt(r.id, 10), budget: r.budget, token: r.token,
	})
	if err == nil && a.Revision > 0 && a.ID != r.id {
		err = &failure{"wrong_product", fmt.Sprintf("asked for product %d, got %d", r.id, a.ID)}
	}
	if err != nil {
		d.fail(ctx, a, err)
		return a, false
	}
	d.observe(a, r)
	d.tally.answered(a, r)
	return a, true
}

// observe takes the answer to the checker.
func (d *Driver) observe(a answer, r read) {
	d.checker.Observe(check.Read{
		ID: r.id, Revision: a.Revision, Fresh: a.fresh, Budget: d.budget(r.budget), Replica: a.replica,
		Wrote: r.wrote, Saw: r.saw, Invoked: a.invoked, Returned: a.returned,
	})
}

// budget is the one that the shop holds a read to.
func (d *Driver) budget(asked time.Duration) time.Duration {
	if asked < 0 {
		return d.config.defaultBudget()
	}
	return asked
}

// list reads a category's first page.
func (d *Driver) list(ctx context.Context, base string, l access) {
	a, err := d.ask(ctx, question{
		method: http.MethodGet, url: base + "/products?category=" + strconv.FormatInt(l.id, 10), budget: l.budget, list: true,
	})
	if err != nil {
		d.fail(ctx, a, err)
		return
	}
	for _, p := range a.page {
		d.checker.Observe(check.Read{
			ID: p.ID, Revision: p.Revision, Fresh: a.fresh, List: true, Budget: d.budget(l.budget), Replica: a.replica,
			Invoked: a.invoked, Returned: a.returned,
		})
	}
	d.tally.listed(a, l.due)
}

// fail counts a failure, unless it comes from the end of the run.
func (d *Driver) fail(ctx context.Context, a answer, err error) {
	if ctx.Err() != nil {
		return
	}
	kind := "other"
	if f, is := errors.AsType[*failure](err); is {
		kind = f.kind
	}
	d.tally.failed(kind, err.Error(), d.faults.excuse(a.invoked, a.returned))
}
