package main

import (
	"fmt"
	"io"
	"strings"
)

// greet prints how to try what runs. Every command can be pasted.
func (s *stand) greet(w io.Writer) {
	var b strings.Builder
	fmt.Fprintf(&b, `
The shop is at %[1]s, behind a load balancer. Try:

  curl -i %[1]s/products/%[2]d
  curl -i '%[1]s/products?category=1&status=active&limit=3'
  curl -i -X PATCH -H 'Content-Type: application/json' -d '{"price_cents": 1999}' %[1]s/products/%[2]d
  curl -i -H 'Freshet-Token: TOKEN' %[1]s/products/%[2]d   # TOKEN from an answer above: never older than that
  curl -i -H 'Freshet-Budget: 0' %[1]s/products/%[2]d      # linearizable

In an answer, Freshet-Replica says who gave it, Freshet-Tier where it was, Freshet-Fresh whether it is
proven. Change a product behind the API's back, and read it again:

  psql '%[3]s' -c 'update products set stock = stock + 1 where id = %[2]d'

See and steer the replicas, from another terminal:

  export FRESHET_ADMIN_URL=http://%[4]s FRESHET_ADMIN_TOKEN_FILE=%[5]s

`, s.url, min(42, s.options.products), s.stack.Postgres.DSN(), s.running()[0].admin, s.token)
	for _, c := range s.running() {
		fmt.Fprintf(&b, "  %-10s  api http://%s  admin http://%s  (process %d)\n",
			c.id, c.api, c.admin, c.command.Process.Pid)
	}
	fmt.Fprintf(&b, "  redis       %s\n", strings.Join(s.stack.Redis.Addrs(), " "))
	fmt.Fprintf(&b, "  nats        %s\n\n", s.stack.NATS.URL())
	fmt.Fprintf(&b, "Ctrl-C ends and removes everything.\n\n")
	fmt.Fprint(w, b.String())
}
