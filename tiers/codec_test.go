package tiers

import (
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
)

func TestValueRoundTrip(t *testing.T) {
	v := tree{Name: "a<b", Children: []*tree{{Name: "b"}}, Index: map[string]tree{"x": {Name: "c"}}}
	b, err := EncodeValue(v)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeValue[tree](JSON, b)
	if err != nil || !reflect.DeepEqual(got, v) {
		t.Errorf("%+v became %+v, %v", v, got, err)
	}
}

func TestValueErrors(t *testing.T) {
	if _, err := EncodeValue(math.Inf(1)); err == nil || !strings.Contains(err.Error(), "float64") {
		t.Errorf("infinity: %v", err)
	}
	if _, err := DecodeValue[point](0, []byte("{}")); err == nil || !strings.Contains(err.Error(), "codec 0") {
		t.Errorf("codec 0: %v", err)
	}
	v, err := DecodeValue[point](JSON, []byte(`{"X":1,"Y":"two"}`))
	if typed, ok := errors.AsType[*json.UnmarshalTypeError](err); !ok || typed.Field != "Y" {
		t.Errorf("wrong type: %v", err)
	}
	if v != (point{}) {
		t.Errorf("half a value %+v came with the error", v)
	}
}
