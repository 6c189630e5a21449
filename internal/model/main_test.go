package model

import (
	"testing"

	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
)

func TestMain(m *testing.M) { stacktest.Main(m, devstack.Options{Postgres: true, Redis: true}) }
