package nodeconfig_test

import (
	"fmt"
	"time"

	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/nodeconfig"
)

// A service with a key of its own beside those of its node.
func ExampleSettings() {
	var c node.Config
	var listen string
	s := nodeconfig.New("SHOP_")
	s.Add("listen", "Address of the API, host:port.", nodeconfig.Text(&listen).Default("127.0.0.1:8080"))
	s.Node(&c)
	err := s.Load(nodeconfig.Layers{ // with File, and os.Environ()
		Environ: []string{"SHOP_APP=shop", "SHOP_POSTGRES_DSN=host=db dbname=shop", "SHOP_CACHES__PRODUCT__TTL=10m", "SHOP_REDIS_TIMEOUT=fast"},
	})
	fmt.Println(err)
	fmt.Println(c.App, c.Caches["product"].TTL == 10*time.Minute)
	// Output:
	// SHOP_REDIS_TIMEOUT: "fast"; want a duration such as 250ms or 1h30m, 1ms to 1m
	// shop true
}
